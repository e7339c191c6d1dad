//! Text tables for people.

/// Lays out rows under headings in columns as wide as their widest cell.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines = vec![headings.iter().map(|&heading| heading.to_owned()).collect::<Vec<_>>()];
    lines.extend_from_slice(rows);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str("  ");
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The same as a table in Markdown, to be pasted into a document.
#[must_use]
pub fn markdown(headings: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let rule = vec!["---"; headings.len()];
    let rows = rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    line(headings) + &line(&rule) + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_can_be_pasted() {
        let rows = [vec!["wg0 down and up".to_owned(), "7.0".to_owned()]];
        let expected = "| fault | ms |\n| --- | --- |\n| wg0 down and up | 7.0 |\n";
        assert_eq!(markdown(&["fault", "ms"], &rows), expected);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["node1".to_owned(), "7".to_owned()], vec!["n".to_owned(), "12".to_owned()]];
        assert_eq!(table(&["node", "ms"], &rows), "  node   ms\n  node1  7\n  n      12\n");
    }
}
