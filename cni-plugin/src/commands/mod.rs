//! One file per command: each is the order of its steps, and nothing else. What a step decides or
//! does lives in the modules above.

pub mod add;
pub mod check;
pub mod del;
pub mod gc;
pub mod status;

use crate::delegate::{Delegate, DelegateError, Overrides};
use crate::delegate_config::{DelegateConfig, Template};
use crate::env::{PluginPath, Task, Verb};
use crate::error::Error;
use crate::netconf::NetConf;
use crate::{host_local, subnet_env};
use serde_json::Value;

/// Serves one command; only ADD has something to print.
///
/// # Errors
/// Those of the command.
pub fn run(task: &Task, path: &PluginPath, conf: &NetConf) -> Result<String, Error> {
    let silent = |()| String::new();
    match task {
        Task::Add(at) => add::run(at, path, conf),
        Task::Del(at) => del::run(at, path, conf).map(silent),
        Task::Check(at) => check::run(at, path, conf).map(silent),
        Task::Status => status::run(path, conf).map(silent),
        Task::Gc => gc::run(path, conf).map(silent),
    }
}

/// Finds a delegate and runs it once, in the plugin's own environment.
fn delegate(verb: Verb, config: &DelegateConfig, path: &PluginPath) -> Result<(), DelegateError> {
    Delegate::find(config, path)?.run(verb, config, &[]).map(|_| ())
}

/// Runs a delegate's DEL and then frees what host-local cannot.
fn detach(config: &DelegateConfig, path: &PluginPath, overrides: Overrides<'_>) -> Result<(), DelegateError> {
    Delegate::find(config, path)?.run(Verb::Del, config, overrides)?;
    host_local::sweep(config);
    Ok(())
}

/// The configuration ADD would use if it ran now.
fn present_config(conf: &NetConf) -> Result<DelegateConfig, Error> {
    let template = Template::new(conf)?;
    Ok(template.fill(&subnet_env::read(&conf.subnet_file)?))
}

/// A saved configuration with the `prevResult` the runtime sent.
fn with_prev_result(saved: &DelegateConfig, conf: &NetConf) -> DelegateConfig {
    match &conf.prev_result {
        Some(result) => saved.with("prevResult", Value::Object(result.clone())),
        None => saved.clone(),
    }
}
