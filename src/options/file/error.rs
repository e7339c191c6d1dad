//! What can be wrong with a configuration file, in words that name the line, the key and the cure. Values are not shown:
//! they may be secrets.

use super::yaml::MAX_SIZE;

/// Why a configuration file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It is not YAML.
    #[error("line {line}: not valid YAML: {problem}; {hint}")]
    Yaml {
        /// Where.
        line: usize,
        /// What the parser says.
        problem: String,
        /// What is probably the matter, and the cure.
        hint: &'static str,
    },
    /// It says nothing.
    #[error("is empty: expected options or variables of the role (KEY: VALUE)")]
    Empty,
    /// It is longer than any configuration.
    #[error("is larger than {} KiB", MAX_SIZE / 1024)]
    TooLarge,
    /// It is not one mapping.
    #[error("line {line}: expected a mapping (KEY: VALUE), got {got}")]
    NotAMapping {
        /// Where.
        line: usize,
        /// What stands there.
        got: &'static str,
    },
    /// A key is no text.
    #[error("line {line}: expected a text as key, got {got}; {hint}")]
    Key {
        /// Where.
        line: usize,
        /// What stands there.
        got: &'static str,
        /// What is probably the matter, and the cure.
        hint: &'static str,
    },
    /// Two values for one key.
    #[error("line {line}: {key} stands here a second time, after line {first}")]
    Duplicate {
        /// The key.
        key: String,
        /// The second time.
        line: usize,
        /// The first time.
        first: usize,
    },
    /// YAML that no configuration needs.
    #[error("line {line}: {what} is not supported")]
    Unsupported {
        /// What it is.
        what: &'static str,
        /// Where.
        line: usize,
    },
    /// Neither an option nor a variable of the role.
    #[error("line {line}: {key} is neither an option nor a variable of the role{}", suggested(suggestion.as_deref()))]
    Unknown {
        /// The key.
        key: String,
        /// Where.
        line: usize,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A variable of the role where only options can stand.
    #[error(
        "line {line}: {key} is a variable of the role, not an option: give it beside {within}, not within it"
    )]
    Misplaced {
        /// The variable.
        key: String,
        /// Where.
        line: usize,
        /// The mapping of options it stands in.
        within: String,
    },
    /// An option that a file cannot give.
    #[error("line {line}: {key} cannot be given in a configuration file: give it on the command line")]
    NotHere {
        /// The option.
        key: String,
        /// Where.
        line: usize,
    },
    /// A value of another type.
    #[error("line {line}: {key}: expected {expected}, got {got}")]
    WrongType {
        /// The key.
        key: String,
        /// Where.
        line: usize,
        /// What would be accepted.
        expected: &'static str,
        /// What stands there.
        got: &'static str,
    },
    /// A template names something that is not there.
    #[error("{}: {key} refers to {name}, which is not defined{hint}", place(*.line))]
    Undefined {
        /// The key whose value is the template.
        key: String,
        /// Where.
        line: usize,
        /// What is not there.
        name: String,
        /// What is there instead; empty or beginning with a separator.
        hint: String,
    },
    /// Variables that refer to each other in a circle.
    #[error("{}: {key} refers to itself: {}", place(*.line), chain.join(" → "))]
    Loop {
        /// The key.
        key: String,
        /// Where.
        line: usize,
        /// Who refers to whom.
        chain: Vec<String>,
    },
    /// A template that cannot be read or evaluated.
    #[error("{}: {key}: the template cannot be evaluated: {problem}", place(*.line))]
    Template {
        /// The key.
        key: String,
        /// Where.
        line: usize,
        /// What the template library says.
        problem: String,
    },
    /// The role's variables make no network config.
    #[error("{}: {key}: {problem}", place(*.line))]
    Network {
        /// The variable.
        key: &'static str,
        /// Where.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Where a value stands; line 0 is the role's own default.
fn place(line: usize) -> String {
    if line == 0 { "the role's default".to_owned() } else { format!("line {line}") }
}

fn suggested(name: Option<&str>) -> String {
    name.map_or_else(
        || ": flanneld -help lists all options".to_owned(),
        |name| format!(": did you mean {name}?"),
    )
}
