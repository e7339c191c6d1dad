//! The text of a configuration file becomes a tree whose every node knows its line. Nothing here knows what a key means.
//!
//! Plain scalars are read as Ansible reads them (YAML 1.1: `yes` and `off` are booleans), since the same file may be given to
//! the role. What a configuration file has no use for is refused by name: anchors, aliases, tags, a second document.

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::error::FileError;
use crate::options::number;

/// The largest file that is read, in bytes.
pub const MAX_SIZE: usize = 256 * 1024;
/// How deep lists and mappings may lie in each other.
const MAX_DEPTH: usize = 16;

/// A value and the line it begins on, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) content: Content,
    pub(super) line: usize,
}

/// What stands in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Null,
    /// With the word that stands for it.
    Bool(bool, String),
    Int(i64),
    /// A number with a fraction or exponent, as written.
    Float(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; no key stands twice.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Node,
}

impl Content {
    /// What it is, for messages; never what it says, as that may be a secret.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(..) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads a file that has to be one mapping.
pub(super) fn mapping(text: &str) -> Result<Vec<Entry>, FileError> {
    let root = document(text)?;
    match root.content {
        Content::Map(entries) => Ok(entries),
        Content::Null => Err(FileError::Empty),
        other => Err(FileError::NotAMapping { line: root.line, got: other.kind() }),
    }
}

/// Reads a text of one document; one without any is null.
pub(super) fn document(text: &str) -> Result<Node, FileError> {
    if text.len() > MAX_SIZE {
        return Err(FileError::TooLarge);
    }
    let mut events = Events { parser: Parser::new_from_str(text), text };
    let mut root = None;
    loop {
        let (event, line) = events.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => return Err(FileError::Unsupported { what: "a second document", line }),
            other => root = Some(node(&mut events, other, line, 0)?),
        }
    }
    Ok(root.unwrap_or(Node { content: Content::Null, line: 1 }))
}

struct Events<'a> {
    parser: Parser<'a, StrInput<'a>>,
    text: &'a str,
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), FileError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, line_of(span))),
            Some(Err(error)) => Err(self.invalid(error.marker().line(), error.info())),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn invalid(&self, line: usize, problem: &str) -> FileError {
        FileError::Yaml { line, problem: problem.to_owned(), hint: self.hint(line) }
    }

    /// What people mostly get wrong, judged by the line, or by the next one: the parser looks ahead.
    fn hint(&self, line: usize) -> &'static str {
        let mut near = self.text.lines().skip(line.saturating_sub(1)).take(2);
        if near.clone().any(|text| text.contains('\t')) {
            return "there is a tab: write blanks";
        }
        match near.next().is_some_and(begins_with_a_template) {
            true => "a value that begins with {{ belongs in quotes",
            false => "check the indentation, and put texts with special characters in quotes",
        }
    }
}

fn begins_with_a_template(line: &str) -> bool {
    let value = line.split_once(": ").or_else(|| line.split_once("- ")).map_or(line, |(_, value)| value);
    value.trim_start().starts_with('{')
}

fn line_of(span: Span) -> usize {
    span.start.line()
}

/// The node that begins with `event`.
fn node<'a>(events: &mut Events<'a>, event: Event<'a>, line: usize, depth: usize) -> Result<Node, FileError> {
    let refuse = |what| Err(FileError::Unsupported { what, line });
    if depth > MAX_DEPTH {
        return Err(FileError::Unsupported { what: "so deep a nesting", line });
    }
    let content = match event {
        Event::Alias(_) => return refuse("an alias (*NAME)"),
        Event::Scalar(.., Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
            return refuse("a tag (such as !vault)");
        }
        Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
            return refuse("an anchor (&NAME)");
        }
        Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text),
        Event::Scalar(text, ..) => Content::Text(text.into_owned()),
        Event::SequenceStart(..) => Content::List(list(events, depth)?),
        Event::MappingStart(..) => Content::Map(map(events, depth)?),
        _ => return Err(events.invalid(line, "a value is missing")),
    };
    Ok(Node { content, line })
}

fn list(events: &mut Events<'_>, depth: usize) -> Result<Vec<Node>, FileError> {
    let mut items = Vec::new();
    loop {
        match events.next()? {
            (Event::SequenceEnd, _) => return Ok(items),
            (event, line) => items.push(node(events, event, line, depth + 1)?),
        }
    }
}

fn map(events: &mut Events<'_>, depth: usize) -> Result<Vec<Entry>, FileError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let (event, line) = events.next()?;
        if event == Event::MappingEnd {
            return Ok(entries);
        }
        let key = node(events, event, line, depth + 1)?;
        let key = match key.content {
            Content::Text(key) => key,
            other => return Err(FileError::Key { line, got: other.kind(), hint: events.hint(line) }),
        };
        if let Some(first) = entries.iter().find(|entry| entry.key == key) {
            return Err(FileError::Duplicate { key, line, first: first.line });
        }
        let (event, value_line) = events.next()?;
        let value = node(events, event, value_line, depth + 1)?;
        entries.push(Entry { key, line, value });
    }
}

/// A scalar without quotes, by the rules of YAML 1.1.
fn plain(text: &str) -> Content {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Content::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Content::Bool(true, text.to_owned());
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Content::Bool(false, text.to_owned());
        }
        _ => {}
    }
    let numeric = text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'));
    match number::int(text) {
        Some(number) => Content::Int(number),
        None if numeric && text.parse::<f64>().is_ok() => Content::Float(text.to_owned()),
        None => Content::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        mapping(text).unwrap_err().to_string()
    }

    fn value(text: &str) -> Content {
        document(text).unwrap().content
    }

    #[test]
    fn scalars_are_read_as_ansible_reads_them() {
        for (text, content) in [
            ("yes", Content::Bool(true, "yes".to_owned())),
            ("Off", Content::Bool(false, "Off".to_owned())),
            ("'yes'", Content::Text("yes".to_owned())),
            ("0", Content::Int(0)),
            ("\"0\"", Content::Text("0".to_owned())),
            ("0x10", Content::Int(16)),
            ("1.5", Content::Float("1.5".to_owned())),
            ("1.2.3.4", Content::Text("1.2.3.4".to_owned())),
            ("10.0.0.0/8", Content::Text("10.0.0.0/8".to_owned())),
            ("infinity", Content::Text("infinity".to_owned())),
            ("~", Content::Null),
            ("|\n  a\n  b\n", Content::Text("a\nb\n".to_owned())),
        ] {
            assert_eq!(value(text), content, "{text}");
        }
    }

    #[test]
    fn every_node_knows_its_line() {
        let entries = mapping("# comment\na: 1\n\nb:\n  - x\n  - y\nc: {d: 2}\n").unwrap();
        assert_eq!(entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [2, 4, 7]);
        let Content::List(items) = &entries[1].value.content else { panic!("no list") };
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn odd_files_are_refused_in_clear_words() {
        for (text, expected) in [
            ("", "is empty: expected options or variables of the role (KEY: VALUE)"),
            ("---\n# only a comment\n", "is empty: expected options or variables of the role (KEY: VALUE)"),
            ("- a\n- b\n", "line 1: expected a mapping (KEY: VALUE), got a list"),
            ("hunter2", "line 1: expected a mapping (KEY: VALUE), got a text"),
            ("iface: a\nv: 1\niface: b\n", "line 3: iface stands here a second time, after line 1"),
            ("a: &x 1\n", "line 1: an anchor (&NAME) is not supported"),
            ("a: !vault |\n  66\n", "line 1: a tag (such as !vault) is not supported"),
            ("a: 1\n---\nb: 2\n", "line 3: a second document is not supported"),
            (
                "[a]: 1\n",
                "line 1: expected a text as key, got a list; check the indentation, and put texts with special characters in quotes",
            ),
            (
                "a: {{ b }}\n",
                "line 1: expected a text as key, got a mapping; a value that begins with {{ belongs in quotes",
            ),
            (
                "a:\n  - {{ b }}/c\n",
                "line 2: expected a text as key, got a mapping; a value that begins with {{ belongs in quotes",
            ),
            (
                "v: 1\n\tiface: x\n",
                "line 1: not valid YAML: while scanning a plain scalar, found a tab; there is a tab: write blanks",
            ),
            (
                "a:\n\tb: 1\n",
                "line 2: not valid YAML: tabs disallowed within this context (block indentation); there is a tab: write blanks",
            ),
            (
                "iface:\twg0\n",
                "line 1: not valid YAML: ':' must be followed by a valid YAML whitespace; there is a tab: write blanks",
            ),
            (
                "a: b: c\n",
                "line 1: not valid YAML: mapping values are not allowed in this context; check the indentation, and put texts with special characters in quotes",
            ),
        ] {
            assert_eq!(message(text), expected, "{text:?}");
        }
        for (text, line) in [("a: [1\nb: 2", "line "), ("\"a", "line ")] {
            assert!(message(text).starts_with(line), "{text:?}: {}", message(text));
        }
    }

    #[test]
    fn bombs_are_refused_at_once() {
        let laughs = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n";
        assert_eq!(message(laughs), "line 1: an anchor (&NAME) is not supported");
        assert_eq!(message("a: *nobody\n").lines().count(), 1);
        let deep = format!("a: {}", "[".repeat(200_000));
        assert!(mapping(&deep).is_err());
        let nested = format!("a: {}1{}", "[".repeat(20), "]".repeat(20));
        assert_eq!(message(&nested), "line 1: so deep a nesting is not supported");
        assert_eq!(message(&" ".repeat(MAX_SIZE + 1)), "is larger than 256 KiB");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[-a-z0-9:#|>'\"&*!\\[\\]{},%\\n ]{0,80}") {
            let _ = document(&text);
        }
    }
}
