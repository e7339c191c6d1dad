//! Each option with its typed value and origin: what was typed, checked against the table, but not yet put together.

use std::fmt;

use super::error::{OptionsError, Warning};
use super::flags::{self, Flag, Kind, Support};
use super::number;
use super::raw::{Origin, Raw, shown};

/// A typed value.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    Bool(bool),
    Int(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::List(texts) => f.write_str(&texts.join(",")),
            Self::Bool(on) => on.fmt(f),
            Self::Int(number) => number.fmt(f),
        }
    }
}

/// One option as it is in effect.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) flag: &'static Flag,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Setting {
    /// The option and its value as its origin spells it, redacted.
    pub(super) fn spell(&self) -> String {
        self.origin.spell(self.flag, &self.value.to_string())
    }

    /// The setting as it may be shown.
    fn shown(&self) -> Effective {
        let value = shown(self.flag, &self.value.to_string());
        Effective { name: self.flag.name, value, origin: self.origin }
    }

    /// An error that says what would have been accepted.
    pub(super) fn bad(&self, expected: impl Into<String>) -> OptionsError {
        OptionsError::BadValue { given: self.spell(), expected: expected.into() }
    }

    pub(super) fn text(&self) -> &str {
        if let Value::Text(text) = &self.value { text } else { "" }
    }

    pub(super) fn list(&self) -> &[String] {
        if let Value::List(texts) = &self.value { texts } else { &[] }
    }

    pub(super) fn bool(&self) -> bool {
        self.value == Value::Bool(true)
    }

    pub(super) fn int(&self) -> i64 {
        if let Value::Int(number) = self.value { number } else { 0 }
    }
}

/// Every option of the table, typed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Settings(Vec<Setting>);

impl fmt::Debug for Settings {
    /// Says nothing: there are secrets among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings")
    }
}

impl Settings {
    /// Types every value, and refuses what asks for something not built yet.
    pub(super) fn of(raw: &Raw) -> Result<Self, OptionsError> {
        let settings: Vec<_> = flags::ALL.iter().map(|flag| settle(flag, raw)).collect::<Result<_, _>>()?;
        settings.iter().try_for_each(refuse_not_built)?;
        Ok(Self(settings))
    }

    /// These settings with what `fresh` says for the options that can change while the daemon runs.
    pub(super) fn with_live(&self, fresh: &Self) -> Self {
        let merged =
            |running: &Setting| if running.flag.live { fresh.get(running.flag) } else { running.clone() };
        Self(self.0.iter().map(merged).collect())
    }

    /// The settings of `fresh` that have another value here, as they may be shown.
    pub(super) fn changed<'a>(
        &'a self,
        fresh: &'a Self,
    ) -> impl Iterator<Item = (&'static Flag, Effective)> + 'a {
        let changed = fresh.0.iter().filter(|setting| self.get(setting.flag).value != setting.value);
        changed.map(|setting| (setting.flag, setting.shown()))
    }

    /// The setting of an option of the table.
    pub(super) fn get(&self, flag: &'static Flag) -> Setting {
        match self.0.iter().find(|setting| setting.flag.name == flag.name) {
            Some(found) => Setting { flag, value: found.value.clone(), origin: found.origin },
            None => Setting { flag, value: default_of(flag), origin: Origin::Default },
        }
    }

    /// What was accepted but does not do what it says.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.0.iter().filter_map(warning)
    }

    /// Each option with its value as it may be shown, sorted by name. `overruled` says in words what took the place of a value.
    pub(super) fn effective(&self, overruled: impl Fn(&Setting) -> Option<String>) -> Vec<Effective> {
        let effective = |setting: &Setting| match overruled(setting) {
            Some(value) => Effective { value, ..setting.shown() },
            None => setting.shown(),
        };
        self.0.iter().map(effective).collect()
    }
}

/// One option as it is in effect, for people: secrets are redacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The option's name without dashes.
    pub name: &'static str,
    /// Its value as text. Several values are joined by commas.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} ({})", self.name, self.value, self.origin)
    }
}

fn settle(flag: &'static Flag, raw: &Raw) -> Result<Setting, OptionsError> {
    let Some(given) = raw.get(flag) else {
        return Ok(Setting { flag, value: default_of(flag), origin: Origin::Default });
    };
    if flag.kind == Kind::List {
        return Ok(Setting { flag, value: Value::List(given.texts.clone()), origin: given.origin });
    }
    let text = given.texts.last().map_or("", String::as_str);
    let wrong = |expected| OptionsError::BadValue { given: given.origin.spell(flag, text), expected };
    Ok(Setting { flag, value: value_of(flag, text).map_err(wrong)?, origin: given.origin })
}

/// Types a text, or says what was expected.
fn value_of(flag: &Flag, text: &str) -> Result<Value, String> {
    match flag.kind {
        Kind::Text { .. } | Kind::Urls { .. } | Kind::Secret | Kind::List => Ok(Value::Text(text.to_owned())),
        Kind::Bool { .. } => number::boolean(text).map(Value::Bool).ok_or_else(|| "true or false".to_owned()),
        Kind::Int { min, max, unit, .. } => match number::int(text) {
            Some(number) if (min..=max).contains(&number) => Ok(Value::Int(number)),
            _ if min < 0 => Err(format!("an integer up to {max} ({unit})")),
            _ => Err(format!("an integer from {min} to {max} ({unit})")),
        },
    }
}

fn default_of(flag: &Flag) -> Value {
    match flag.kind {
        Kind::Text { default } | Kind::Urls { default } => Value::Text(default.to_owned()),
        Kind::Secret => Value::Text(String::new()),
        Kind::List => Value::List(Vec::new()),
        Kind::Bool { default } => Value::Bool(default),
        Kind::Int { default, .. } => Value::Int(default),
    }
}

fn refuse_not_built(setting: &Setting) -> Result<(), OptionsError> {
    let Support::NotBuilt { off, supported } = setting.flag.support else { return Ok(()) };
    if setting.value.to_string() == off || setting.value == default_of(setting.flag) {
        return Ok(());
    }
    Err(OptionsError::NotBuilt { given: setting.spell(), supported })
}

fn warning(setting: &Setting) -> Option<Warning> {
    let flag = setting.flag;
    match flag.support {
        Support::NoEffect if setting.origin != Origin::Default => Some(Warning::NoEffect(setting.spell())),
        Support::NotBuilt { off, .. } if setting.value.to_string() != off => {
            Some(Warning::DefaultNotBuilt { flag, value: setting.value.to_string(), off })
        }
        Support::Built | Support::NoEffect | Support::NotBuilt { .. } => None,
    }
}
