//! `flanneld status`: asks the running daemon how it is, compares its device with the kernel, and prints both.
//!
//! What is printed is made by `text`; nothing here changes anything.

mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use serde::Serialize;

use super::arguments::{Switch, Usage};
use super::{Command, arguments, print};
use crate::kernel::{Kernel, LinuxKernel, ReceiveBuffers, Scope, command_of_step};
use crate::model::device;
use crate::status::answer::Answer;
use crate::status_socket::{self, AskError};

pub(super) const COMMAND: Command = Command {
    name: "status",
    summary: "what the running daemon holds: lease, device, peers, rules, store, repairs",
    run,
};

const USAGE: Usage = Usage {
    command: COMMAND.name,
    text: "Asks the running daemon. Ends with 0 when the node is ready, 1 when something is wrong, 3 when no daemon runs.",
    switches: &[Switch { name: JSON, help: "print JSON" }],
};

const JSON: &str = "json";
/// What `systemctl status` ends with when the unit is not active.
const NOT_RUNNING: u8 = 3;

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    /// What would make the device right, as commands; `null` when the kernel could not be read.
    device_differences: Option<&'a [String]>,
}

fn run(words: Vec<OsString>) -> ExitCode {
    let arguments = match arguments(&USAGE, words) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let options = &arguments.configured.options;
    let answer = match status_socket::ask(&status_socket::path_beside(&options.subnet_file)) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("flanneld status: {}", text::no_answer(&error));
            let nobody = matches!(error, AskError::NobodyThere(_));
            return ExitCode::from(if nobody { NOT_RUNNING } else { 1 });
        }
    };
    let differences = device_differences(&answer);
    let differences = differences.as_deref();
    let text = if arguments.has(JSON) {
        let report = Report { answer: &answer, device_differences: differences };
        format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default())
    } else {
        text::render(&answer, differences)
    };
    let right = answer.ready && differences.is_none_or(<[String]>::is_empty) && text::troubles(&answer) == 0;
    print(&text, if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the daemon would do to the device now, as commands.
fn device_differences(answer: &Answer) -> Option<Vec<String>> {
    let wanted = answer.device.as_ref()?.wanted()?;
    let mut kernel = LinuxKernel::open(ReceiveBuffers::default()).ok()?;
    let (vtep, network) = (&wanted.vtep, wanted.network);
    let scope = Scope { vtep: vtep.name.clone(), parent: vtep.parent.clone(), network };
    let found = kernel.device(&scope).ok()?;
    let steps = device::steps(vtep, wanted.address, network, found.as_ref());
    Some(steps.iter().map(|step| command_of_step(&scope, step)).collect())
}
