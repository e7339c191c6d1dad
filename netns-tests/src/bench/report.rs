//! What was measured, as a Markdown table and as a plot.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::sample::Sample;

/// One line of the table: a quantity, and what each column measured.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    /// By column, in any order; a column without a sample shows a dash.
    pub(super) samples: BTreeMap<String, Sample>,
}

/// Rows in the order in which they were begun.
#[derive(Debug, Default)]
pub(super) struct Results(Vec<Row>);

impl Results {
    /// Adds one measurement.
    pub(super) fn add(&mut self, name: &str, unit: &'static str, column: &str, value: f64) {
        let row = match self.0.iter().position(|row| row.name == name) {
            Some(position) => self.0.get_mut(position),
            None => {
                self.0.push(Row { name: name.to_owned(), unit, samples: BTreeMap::new() });
                self.0.last_mut()
            }
        };
        if let Some(row) = row {
            row.samples.entry(column.to_owned()).or_default().push(value);
        }
    }

    /// Whether a column has a sample at all.
    pub(super) fn has(&self, column: &str) -> bool {
        self.0.iter().any(|row| row.samples.contains_key(column))
    }

    /// The table; `columns` in their order.
    pub(super) fn markdown(&self, columns: &[String]) -> String {
        let mut text = format!("| measured | unit | {} |\n|---|---|", columns.join(" | "));
        text.push_str(&"---|".repeat(columns.len()));
        for row in &self.0 {
            let cell = |column: &String| row.samples.get(column).map_or("–".to_owned(), Sample::to_string);
            let cells: Vec<String> = columns.iter().map(cell).collect();
            let _ = write!(text, "\n| {} | {} | {} |", row.name, row.unit, cells.join(" | "));
        }
        text.push('\n');
        text
    }

    /// Medians in milliseconds as bars on a logarithmic scale: an SVG file's text.
    pub(super) fn plot(&self, columns: &[String]) -> Result<String> {
        let timed: Vec<&Row> = self.0.iter().filter(|row| row.unit == "ms").collect();
        let mut svg = String::new();
        let bars = timed.len() * (columns.len() + 1);
        let height = u32::try_from(120 + bars * 14)?;
        draw(&mut svg, &timed, columns, height).map_err(|error| anyhow!("draw the plot: {error}"))?;
        Ok(svg)
    }
}

fn draw(
    svg: &mut String,
    rows: &[&Row],
    columns: &[String],
    height: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let group = i32::try_from(columns.len() + 1)?;
    let total = i32::try_from(rows.len())? * group;
    let medians = rows.iter().flat_map(|row| row.samples.values().filter_map(Sample::median));
    let (low, high) = medians
        .filter(|value| *value > 0.0)
        .fold((1.0_f64, 10.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let mut chart = ChartBuilder::on(&root)
        .caption("medians, milliseconds (logarithmic)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(330)
        .build_cartesian_2d((low / 2.0..high * 2.0).log_scale(), (0..total).into_segmented())?;
    let name = |position: &SegmentValue<i32>| match position {
        SegmentValue::CenterOf(at) if at.rem_euclid(group) == group / 2 => {
            let row = usize::try_from(total - 1 - at).ok().and_then(|at| rows.get(at / (columns.len() + 1)));
            row.map(|row| row.name.clone()).unwrap_or_default()
        }
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(usize::try_from(total)?)
        .y_label_formatter(&name)
        .y_label_style(("sans-serif", 12))
        .draw()?;
    for (column, name) in columns.iter().enumerate() {
        let colour = Palette99::pick(column).to_rgba();
        let bars = rows.iter().enumerate().filter_map(|(row, measured)| {
            let value = measured.samples.get(name)?.median()?.max(low / 2.0);
            let at = total - 1 - i32::try_from(row * (columns.len() + 1) + column).ok()?;
            let corners = [(low / 2.0, SegmentValue::Exact(at)), (value, SegmentValue::Exact(at + 1))];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(name.as_str())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> (Results, Vec<String>) {
        let mut results = Results::default();
        for value in [9.0, 8.0, 10.0] {
            results.add("ready", "ms", "ours", value);
        }
        results.add("ready", "ms", "go", 148.0);
        results.add("memory", "MB", "ours", 1.2);
        (results, vec!["ours".to_owned(), "go".to_owned()])
    }

    #[test]
    fn the_table_shows_medians_with_their_range() {
        let (results, columns) = results();
        let expected = "| measured | unit | ours | go |\n|---|---|---|---|\n\
                        | ready | ms | 9.00 (8.00–10.0) | 148 |\n| memory | MB | 1.20 | – |\n";
        assert_eq!(results.markdown(&columns), expected);
    }

    #[test]
    fn the_plot_is_an_svg_with_the_rows_that_are_times() {
        let (results, columns) = results();
        let svg = results.plot(&columns).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("ready") && !svg.contains("memory"), "{svg}");
    }
}
