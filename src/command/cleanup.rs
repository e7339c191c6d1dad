//! `flanneld cleanup`: takes away what the daemon, or the Go daemon before it, put on this host or into the store, and nothing
//! else. What is not there any more is fine, so it can be repeated.
//!
//! Which device, route or key is ours is decided in `plan`; here it is looked for and removed. One thing that cannot be
//! removed keeps nothing else from going.

mod lease;
mod plan;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

use ipnetwork::Ipv4Network;

use super::arguments::{Arguments, Switch, Usage};
use super::{Command, arguments, print, running};
use crate::firewall::{Firewall, FirewallOptions};
use crate::kernel::{Kernel, KernelError, LinuxKernel, ReceiveBuffers, Scope, command_of};
use crate::model::device::DeviceStep;
use crate::model::state::{Observed, Operation};
use crate::model::{IfName, Vni};
use crate::options::Options;
use crate::status_socket::{self, AskError};
use crate::subnet_env::{Previous, file};

pub(super) const COMMAND: Command = Command {
    name: "cleanup",
    summary: "remove what the daemon put on this host: device, routes, firewall rules, subnet.env",
    run,
};

const USAGE: Usage = Usage {
    command: COMMAND.name,
    text: "Removes what flanneld put on this host, and nothing else. Without --device, --firewall and --lease: as with\n\
           --device --firewall; the lease stays, so that this node gets the same subnet again. Stop the daemon before.\n\
           Ends with 0 when nothing of that is left, 1 when something could not be removed or a daemon runs.",
    switches: &[
        Switch { name: DEVICE, help: "flannel.VNI, routes of ours elsewhere, subnet.env" },
        Switch { name: FIREWALL, help: "rules in nftables and in both variants of iptables" },
        Switch { name: LEASE, help: "this node's key in etcd: its subnet is free for others at once" },
        Switch { name: FORCE, help: "although a daemon runs, which will put most of it back" },
    ],
};

const DEVICE: &str = "device";
const FIREWALL: &str = "firewall";
const LEASE: &str = "lease";
const FORCE: &str = "force";

/// What was done, a line each, in words.
#[derive(Debug, Default)]
struct Outcome {
    done: Vec<String>,
    /// Things that stay on purpose although they look like ours.
    left: Vec<String>,
    failed: Vec<String>,
}

impl Outcome {
    fn note<T>(&mut self, result: Result<T, impl std::fmt::Display>, done: impl FnOnce(T) -> Vec<String>) {
        match result {
            Ok(value) => self.done.extend(done(value)),
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    fn render(&self) -> String {
        let lines = |title: &str, lines: &[String]| -> String {
            lines.iter().map(|line| format!("{title}{line}\n")).collect()
        };
        let mut text = lines("removed ", &self.done);
        text.push_str(&lines("left ", &self.left));
        text.push_str(&lines("FAILED ", &self.failed));
        if text.is_empty() { "nothing of flanneld's is here\n".to_owned() } else { text }
    }
}

fn run(words: Vec<OsString>) -> ExitCode {
    let arguments = match arguments(&USAGE, words) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let options = &arguments.configured.options;
    if let Some(who) = daemon(options).filter(|_| !arguments.has(FORCE)) {
        eprintln!(
            "flanneld cleanup: {who} and would put everything back: stop it first (systemctl stop flanneld), or say --force"
        );
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("flanneld cleanup: cannot start a runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(clean(&arguments));
    print(&outcome.render(), if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The daemon that runs here, in words.
fn daemon(options: &Options) -> Option<String> {
    if let Some(process) = running::daemons().first() {
        return Some(format!("flanneld runs (process {process})"));
    }
    match status_socket::ask(&status_socket::path_beside(&options.subnet_file)) {
        Ok(_) => Some("flanneld answers in another container".to_owned()),
        Err(AskError::Failed { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => None,
        Err(AskError::Failed { .. }) => Some("flanneld listens, though it does not answer,".to_owned()),
        Err(AskError::NobodyThere(_)) => None,
    }
}

/// The lease first: which one is ours is known best while the device and the file are there.
async fn clean(arguments: &Arguments) -> Outcome {
    let options = &arguments.configured.options;
    let chosen = [DEVICE, FIREWALL, LEASE].map(|part| arguments.has(part));
    let [device, firewall, lease] = if chosen == [false; 3] { [true, true, false] } else { chosen };
    let mut outcome = Outcome::default();
    let previous = file::read_previous(&options.subnet_file).unwrap_or_default();
    if lease {
        match lease::give_back(options, &previous).await {
            Ok(lease::Given::Back(what)) => outcome.done.push(what),
            Ok(lease::Given::Stays(why)) => outcome.left.push(why),
            Ok(lease::Given::Nothing) => {}
            Err(error) => outcome.failed.push(error),
        }
    }
    if device {
        match clean_kernel(&previous, &mut outcome) {
            Ok(()) => clean_files(&options.subnet_file, &mut outcome),
            // The file tells the next try which device is ours.
            Err(error) => outcome.failed.push(error.to_string()),
        }
    }
    if firewall {
        clean_firewall(options, &mut outcome).await;
    }
    outcome
}

/// Devices of ours, and the routes that carry our protocol number.
fn clean_kernel(previous: &Previous, outcome: &mut Outcome) -> Result<(), KernelError> {
    let mut kernel = LinuxKernel::open(ReceiveBuffers::default())?;
    for link in kernel.host()?.links {
        if !plan::may_be_ours(&link.name) {
            continue;
        }
        let scope = everything(&link.name);
        let Some(found) = kernel.device(&scope)? else { continue };
        match plan::why_foreign(&link.name, &found, previous.network) {
            None => {
                kernel.step(&scope, &DeviceStep::Delete)?;
                outcome.done.push(format!("device {}", link.name));
            }
            Some(reason) => outcome.left.push(format!("device {}: {reason}", link.name)),
        }
    }
    let scope = everything(&IfName::of_vtep(Vni::DEFAULT));
    let Observed { entries, .. } = kernel.observe(&scope)?;
    let operations: Vec<Operation> = plan::marked(&entries).map(Operation::DeleteRoute).collect();
    let results = kernel.apply(&scope, &operations);
    for (operation, result) in operations.iter().zip(results) {
        let route = || command_of(&scope, operation).replace("ip route del ", "route ");
        outcome.note(result, |()| vec![route()]);
    }
    Ok(())
}

/// All routes of the main table, whatever network they lead to.
fn everything(device: &IfName) -> Scope {
    let all = Ipv4Network::from(Ipv4Addr::UNSPECIFIED);
    let network = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or(all);
    Scope { vtep: device.clone(), parent: device.clone(), network }
}

/// `subnet.env` and the socket. Their directory may have been there before.
fn clean_files(subnet_file: &Path, outcome: &mut Outcome) {
    for path in [subnet_file.to_owned(), status_socket::path_beside(subnet_file)] {
        match fs::remove_file(&path) {
            Ok(()) => outcome.done.push(path.display().to_string()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => outcome.failed.push(format!("cannot remove {}: {error}", path.display())),
        }
    }
}

async fn clean_firewall(options: &Options, outcome: &mut Outcome) {
    let mut firewall = Firewall::new(FirewallOptions {
        preference: options.firewall.preference,
        enable_nftables: false,
        resync: options.firewall.resync,
        lock_wait: FirewallOptions::LOCK_WAIT,
    });
    match firewall.cleanup().await {
        Ok(changes) => outcome.done.extend(changes.iter().map(|change| change.replace("removed ", ""))),
        Err(errors) => outcome.failed.extend(errors.iter().map(ToString::to_string)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_left_and_failed_is_told_apart() {
        let some = |text: &str| vec![text.to_owned()];
        let outcome =
            Outcome { done: some("device flannel.1"), left: some("device flannel.7: x"), failed: some("y") };
        let expected = "removed device flannel.1\nleft device flannel.7: x\nFAILED y\n";
        assert_eq!(outcome.render(), expected);
        assert_eq!(Outcome::default().render(), "nothing of flanneld's is here\n");
    }
}
