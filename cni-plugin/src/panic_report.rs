//! A panic is a bug, and still the runtime must get exit code 1 and one error object.

use crate::error::code;
use crate::version::CniVersion;
use serde_json::{Value, json};
use std::io::Write;
use std::panic::PanicHookInfo;

/// From now on a panic in any thread prints one error object and ends the process with 1.
/// It works without unwinding.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        let mut stdout = std::io::stdout();
        let _ = write!(stdout, "{}", describe(info));
        let _ = stdout.flush();
        std::process::exit(1);
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> Value {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let what = info.payload_as_str().unwrap_or("no message");
    json!({
        "cniVersion": CniVersion::NEWEST.as_str(),
        "code": code::INTERNAL,
        "msg": "the flannel plugin has a bug and gave up",
        "details": format!("panic at {place}: {what}"),
    })
}
