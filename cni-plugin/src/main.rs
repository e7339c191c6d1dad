//! The `flannel` executable: environment, arguments and stdin in, one answer out.

use flannel_cni::{Answer, about, check_config, panic_report, run};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    panic_report::install();
    match run(|key| std::env::var_os(key), io::stdin()) {
        Some(answer) => print(&answer),
        None => shell(),
    }
}

/// Without `CNI_COMMAND` a person is at the keyboard.
fn shell() -> ExitCode {
    match std::env::args_os().nth(1) {
        None => explain(&about::text(), ExitCode::SUCCESS),
        Some(word) if ["help", "-h", "--help", "-V", "--version"].iter().any(|known| word == *known) => {
            explain(&about::text(), ExitCode::SUCCESS)
        }
        Some(word) if word == "check-config" => check_config(),
        Some(word) => explain(&about::usage(&word.to_string_lossy()), ExitCode::FAILURE),
    }
}

fn check_config() -> ExitCode {
    let report = check_config::run(io::stdin(), std::env::var_os("CNI_PATH"));
    let _ = io::stderr().write_all(report.findings().as_bytes());
    print(&Answer { stdout: report.shown(), success: report.usable() })
}

fn explain(text: &str, code: ExitCode) -> ExitCode {
    let _ = io::stderr().write_all(text.as_bytes());
    code
}

/// An answer nobody can read is a failure.
fn print(answer: &Answer) -> ExitCode {
    let mut stdout = io::stdout();
    let written = stdout.write_all(answer.stdout.as_bytes()).and_then(|()| stdout.flush());
    match written {
        Ok(()) if answer.success => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => explain(&format!("flannel: cannot write to stdout: {error}\n"), ExitCode::FAILURE),
    }
}
