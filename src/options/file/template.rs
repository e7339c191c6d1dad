//! Jinja in the values of the role's variables: `{{flannel_subnet_file_dir}}/subnet.env`.
//!
//! A reference is followed when a template asks for it, through any number of further variables, and the host is looked at only
//! when a template asks for one of its facts. As in Ansible, what is not defined is an error, and so is a circle.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, UndefinedBehavior};

use super::error::FileError;
use super::facts::{Facts, Interface};
use super::role;
use super::yaml::{Content, Node};
use crate::options::flags;

/// Looks at the host.
pub type Gather = Arc<dyn Fn() -> Facts + Send + Sync>;

/// A template may take this many steps; any real one takes some dozens.
const FUEL: u64 = 100_000;
/// Names that every host has.
const OF_HOST: [&str; 4] = ["hostvars", "inventory_hostname", "ansible_hostname", "ansible_nodename"];
/// Longest chain of variables that refer to each other.
const DEPTH: usize = 32;
/// All variables of a file together may take this many bytes of template and value, each as often as it is referred to; variables
/// that each name the one before twice would take any number.
const BYTES: usize = 4 << 20;

/// Variables and facts, and what it takes to evaluate templates with them.
pub(super) struct Templates(Arc<Scope>);

/// What names in a template refer to.
struct Scope {
    environment: Environment<'static>,
    variables: BTreeMap<String, Node>,
    host: Arc<Host>,
    work: Mutex<Work>,
}

/// The host, looked at once at most.
struct Host {
    gather: Gather,
    facts: OnceLock<Facts>,
}

/// The evaluation under way.
#[derive(Default)]
struct Work {
    /// The variables being evaluated, outermost first.
    stack: Vec<String>,
    /// Bytes taken of [`BYTES`].
    taken: usize,
    /// What went wrong in a variable that was referred to.
    failed: Option<FileError>,
    /// The last name that was looked for in vain, and what is there instead.
    missing: Option<(String, String)>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope")
    }
}

impl Host {
    fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| (self.gather)())
    }
}

impl Templates {
    /// Templates over `variables`. Nothing is evaluated yet.
    pub(super) fn new(variables: BTreeMap<String, Node>, gather: Gather) -> Self {
        let host = Arc::new(Host { gather, facts: OnceLock::new() });
        let environment = environment(&host);
        Self(Arc::new(Scope { environment, variables, host, work: Mutex::default() }))
    }

    /// A scalar of the file as text, its references resolved. `None`: it is no scalar.
    ///
    /// # Errors
    /// Naming `key`, when a reference leads nowhere or in a circle.
    pub(super) fn scalar(&self, key: &str, node: &Node) -> Result<Option<String>, FileError> {
        Ok(match &node.content {
            Content::Text(text) => Some(self.0.render(key, node.line, text)?),
            Content::Bool(on, _) => Some(python_bool(*on).to_owned()),
            Content::Int(number) => Some(number.to_string()),
            Content::Float(text) => Some(text.clone()),
            Content::Null | Content::List(_) | Content::Map(_) => None,
        })
    }

    /// The text of a variable; `None`: it is not defined or no scalar.
    ///
    /// # Errors
    /// As [`Templates::scalar`].
    pub(super) fn variable(&self, name: &str) -> Result<Option<String>, FileError> {
        match self.0.variables.get(name) {
            Some(node) => self.scalar(name, node),
            None => Ok(None),
        }
    }
}

fn environment(host: &Arc<Host>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_formatter(as_python);
    let host = Arc::clone(host);
    environment.add_filter("expanduser", move |path: String| expanduser(&host, path));
    environment
}

/// Prints booleans as Ansible does.
fn as_python(
    output: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    match bool::try_from(value.clone()) {
        Ok(on) if value.kind() == ValueKind::Bool => {
            output.write_str(python_bool(on)).map_err(minijinja::Error::from)
        }
        _ => minijinja::escape_formatter(output, state, value),
    }
}

fn python_bool(on: bool) -> &'static str {
    if on { "True" } else { "False" }
}

/// `~` and `~/…` begin with the home directory.
fn expanduser(host: &Host, path: String) -> String {
    match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", host.facts().home),
        _ => path,
    }
}

impl Scope {
    /// Evaluates one template. Texts without any are left alone.
    fn render(self: &Arc<Self>, key: &str, line: usize, text: &str) -> Result<String, FileError> {
        self.take(key, line, text)?;
        if !["{{", "{%", "{#"].iter().any(|mark| text.contains(mark)) {
            return Ok(text.to_owned());
        }
        self.enter(key, line)?;
        let rendered = self.environment.render_str(text, Value::from_dyn_object(Arc::clone(self)));
        let mut work = self.work();
        work.stack.pop();
        if let Some(failed) = work.failed.take() {
            return Err(failed);
        }
        let rendered = rendered.map_err(|error| explain(key, line, &error, work.missing.take()))?;
        drop(work);
        self.take(key, line, &rendered)?;
        Ok(rendered)
    }

    fn take(&self, key: &str, line: usize, text: &str) -> Result<(), FileError> {
        let mut work = self.work();
        work.taken = work.taken.saturating_add(text.len());
        match work.taken > BYTES {
            true => Err(FileError::Template {
                key: key.to_owned(),
                line,
                problem: format!("the file's variables grow beyond {} MiB", BYTES >> 20),
            }),
            false => Ok(()),
        }
    }

    /// A variable under evaluation must not be needed for its own value.
    fn enter(&self, key: &str, line: usize) -> Result<(), FileError> {
        let mut work = self.work();
        if work.stack.iter().any(|name| name == key) || work.stack.len() >= DEPTH {
            let chain = work.stack.iter().cloned().chain([key.to_owned()]).collect();
            return Err(FileError::Loop { key: key.to_owned(), line, chain });
        }
        work.stack.push(key.to_owned());
        Ok(())
    }

    fn work(&self) -> std::sync::MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, name: String, hint: String) -> Option<Value> {
        self.work().missing = Some((name, hint));
        None
    }

    /// What a name refers to.
    fn look_up(self: &Arc<Self>, name: &str) -> Option<Value> {
        if let Some(node) = self.variables.get(name) {
            return Some(self.value(name, node));
        }
        match name {
            "hostvars" => Some(Value::from_object(HostVars(Arc::clone(self)))),
            "inventory_hostname" | "ansible_hostname" | "ansible_nodename" => {
                Some(Value::from(self.host.facts().hostname.as_str()))
            }
            _ => match name.strip_prefix("ansible_") {
                Some(interface) => self.interface(name, interface),
                None => self.missing(name.to_owned(), instead_of(name)),
            },
        }
    }

    /// A variable, evaluated as far as it is a template. A failure is remembered, as it cannot be returned through the library.
    fn value(self: &Arc<Self>, name: &str, node: &Node) -> Value {
        match &node.content {
            Content::Null => Value::from(()),
            Content::Bool(on, _) => Value::from(*on),
            Content::Int(number) => Value::from(*number),
            Content::Float(text) => Value::from(text.as_str()),
            Content::Text(text) => match self.render(name, node.line, text) {
                Ok(text) => Value::from(text),
                Err(error) => {
                    self.work().failed.get_or_insert(error);
                    Value::UNDEFINED
                }
            },
            Content::List(items) => items.iter().map(|item| self.value(name, item)).collect(),
            Content::Map(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), self.value(name, &entry.value)));
                Value::from(pairs.collect::<BTreeMap<_, _>>())
            }
        }
    }

    fn interface(self: &Arc<Self>, name: &str, interface: &str) -> Option<Value> {
        let interfaces = &self.host.facts().interfaces;
        match interfaces.iter().find(|found| found.name == interface || found.variable() == interface) {
            Some(found) => Some(Value::from_object(InterfaceFacts(Arc::clone(self), found.clone()))),
            None => {
                let names: Vec<&str> = interfaces.iter().map(|found| found.name.as_str()).collect();
                self.missing(
                    name.to_owned(),
                    format!(": the interfaces of this host are {}", names.join(", ")),
                )
            }
        }
    }
}

/// What to do about a name that is neither in the file nor known otherwise.
fn instead_of(name: &str) -> String {
    if role::find(name).is_some() {
        return ": give it in the file".to_owned();
    }
    let known = role::VARIABLES.iter().map(|variable| variable.name).chain(OF_HOST);
    match flags::closest_of(name, known) {
        Some(known) => format!(": did you mean {known}?"),
        None => {
            format!(": known are the variables of the role, {} and ansible_INTERFACE", OF_HOST.join(", "))
        }
    }
}

fn explain(key: &str, line: usize, error: &minijinja::Error, missing: Option<(String, String)>) -> FileError {
    let key = key.to_owned();
    match (error.kind(), missing) {
        (ErrorKind::UndefinedError, Some((name, hint))) => FileError::Undefined { key, line, name, hint },
        (kind, _) => {
            let problem =
                error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}"));
            FileError::Template { key, line, problem }
        }
    }
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.look_up(key.as_str()?)
    }
}

/// `hostvars`: of all hosts, only this one is known.
#[derive(Debug)]
struct HostVars(Arc<Scope>);

impl Object for HostVars {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let (scope, name) = (&self.0, key.as_str()?);
        let own = &scope.host.facts().hostname;
        if name == own {
            return Some(Value::from_dyn_object(Arc::clone(scope)));
        }
        scope.missing(format!("hostvars[{name:?}]"), format!(": only this host, {own:?}, is known here"))
    }
}

/// `ansible_wg0`.
#[derive(Debug)]
struct InterfaceFacts(Arc<Scope>, Interface);

impl Object for InterfaceFacts {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let Self(scope, interface) = &**self;
        let name = key.as_str()?;
        let found = match name {
            "device" => Some(Value::from(interface.name.as_str())),
            "active" => Some(Value::from(interface.active)),
            "macaddress" => interface.mac.as_deref().map(Value::from),
            "ipv4" => interface.ipv4.map(|(address, prefix)| {
                Value::from(BTreeMap::from([
                    ("address", address.to_string()),
                    ("prefix", prefix.to_string()),
                ]))
            }),
            _ => None,
        };
        let hint = match name {
            "ipv4" => ": the interface has no IPv4 address",
            "macaddress" => ": the interface has no MAC",
            _ => ": known are active, device, ipv4 and macaddress",
        };
        found.or_else(|| scope.missing(format!("ansible_{}.{name}", interface.variable()), hint.to_owned()))
    }
}
