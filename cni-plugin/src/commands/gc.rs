//! GC: undo what no valid attachment needs, then let the delegate do the same. Goes on after
//! errors and reports them together at the end.

use crate::commands::{delegate, detach, present_config};
use crate::delegate::DelegateError;
use crate::delegate_config::DelegateConfig;
use crate::env::{IfName, PluginPath, Verb};
use crate::error::Error;
use crate::host_local;
use crate::netconf::{Attachments, NetConf, ValidAttachment};
use crate::state::{Entry, Listed, StateDir};
use std::ffi::OsStr;

/// Cleans up after containers that are gone.
///
/// # Errors
/// The first failure, with the messages of all in its details.
pub fn run(path: &PluginPath, conf: &NetConf) -> Result<(), Error> {
    let state = StateDir::new(&conf.data_dir);
    let mut failures = Vec::new();
    let mut remaining = Vec::new();
    let listed = state.list().unwrap_or_else(|error| {
        failures.push(error.into());
        Vec::new()
    });
    for item in listed {
        match judge(&item, conf) {
            Verdict::Foreign => {}
            Verdict::Keep => remaining.push(item),
            Verdict::Drop(config) => {
                let _lock = state.lock(&item.file);
                match detach_gone(&item, &config, path) {
                    Ok(()) => state.remove(&item.file),
                    Err(error) => {
                        failures.push(error.into());
                        remaining.push(item);
                    }
                }
            }
            Verdict::DropBad => {
                if let Ok(config) = present_config(conf) {
                    let _ = detach_gone(&item, &config, path);
                }
                state.remove(&item.file);
            }
        }
    }
    failures.extend(forward(path, conf, &remaining).err());
    report(failures)
}

/// What is to become of a state file.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Of another network: the directory is shared.
    Foreign,
    /// Still needed, or nothing is known about what is.
    Keep,
    /// To be undone with its own configuration.
    Drop(DelegateConfig),
    /// Says nothing, and its container is unknown.
    DropBad,
}

fn judge(item: &Listed, conf: &NetConf) -> Verdict {
    let valid = match &conf.attachments {
        Attachments::NotSent => None,
        Attachments::Complete(valid) => Some(valid.iter().any(|valid| covers(valid, item))),
    };
    match (&item.entry, valid) {
        (Entry::Absent, _) => Verdict::Foreign,
        (Entry::Saved(config, _), _) if config.text("name") != conf.name => Verdict::Foreign,
        (Entry::Saved(config, _), Some(false)) => Verdict::Drop(config.clone()),
        (Entry::Bad, Some(false)) => Verdict::DropBad,
        (Entry::Saved(..), _) => Verdict::Keep,
        (Entry::Bad, _) => Verdict::Foreign,
    }
}

/// Whether a valid attachment is the one of this file. A file that does not say its interface, as
/// the Go plugin writes it, may be any of its container's.
fn covers(valid: &ValidAttachment, item: &Listed) -> bool {
    let ifname = item.ifname.as_ref().map(IfName::to_text);
    valid.container == item.container.as_str() && ifname.is_none_or(|ifname| ifname == valid.ifname)
}

/// A DEL on behalf of a container that is gone, and with it its network namespace.
fn detach_gone(item: &Listed, config: &DelegateConfig, path: &PluginPath) -> Result<(), DelegateError> {
    let usual = OsStr::new("eth0");
    let overrides = [
        ("CNI_CONTAINERID", OsStr::new(item.container.as_str())),
        ("CNI_IFNAME", item.ifname.as_ref().map_or(usual, IfName::as_os_str)),
        ("CNI_NETNS", OsStr::new("")),
    ];
    detach(config, path, &overrides)
}

/// Frees what host-local cannot and hands the list on. Without a usable `subnet.env` any saved configuration of this network will do.
fn forward(path: &PluginPath, conf: &NetConf, remaining: &[Listed]) -> Result<(), Error> {
    let saved = remaining.iter().find_map(|item| match &item.entry {
        Entry::Saved(config, _) => Some(config.clone()),
        Entry::Absent | Entry::Bad => None,
    });
    let config = match (present_config(conf), saved) {
        (Ok(config), _) => config,
        (Err(Error::SubnetEnv(_)), Some(saved)) => saved,
        (Err(error @ Error::SubnetEnv(_)), None) => return Err(Error::NotAvailable(Box::new(error))),
        (Err(error), _) => return Err(error),
    };
    host_local::sweep(&config);
    let keys = conf.attachment_keys.iter();
    let config = keys.fold(config, |config, (key, value)| config.with(key, value.clone()));
    Ok(delegate(Verb::Gc, &config, path)?)
}

fn report(mut failures: Vec<Error>) -> Result<(), Error> {
    if failures.len() < 2 {
        return failures.pop().map_or(Ok(()), Err);
    }
    let all: Vec<String> = failures.iter().map(Error::whole).collect();
    let first = Box::new(failures.swap_remove(0));
    Err(Error::Several { first, all: all.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_stands_for_itself_and_several_are_joined() {
        assert!(report(vec![]).is_ok());
        assert!(matches!(report(vec![Error::MissingName]), Err(Error::MissingName)));
        let joined = report(vec![Error::Config("a".into()), Error::MissingName]).unwrap_err();
        assert_eq!(joined.code(), 7);
        assert_eq!(joined.to_string(), "invalid network config: a");
        assert_eq!(joined.details().unwrap(), "invalid network config: a; missing network name");
    }
}
