//! CHECK: let the delegate compare the kernel with `prevResult`. That `subnet.env` changed since
//! is no fault of the container.

use crate::commands::{delegate, with_prev_result};
use crate::env::{Attachment, PluginPath, Verb};
use crate::error::Error;
use crate::netconf::NetConf;
use crate::state::{Entry, StateDir};

/// Verifies an attachment.
///
/// # Errors
/// No `prevResult`, no state, or the delegate's verdict.
pub fn run(at: &Attachment, path: &PluginPath, conf: &NetConf) -> Result<(), Error> {
    if conf.prev_result.is_none() {
        return Err(Error::Config("prevResult is missing, CHECK needs it".to_owned()));
    }
    match StateDir::new(&conf.data_dir).find(at)?.1 {
        Entry::Saved(config, _) => Ok(delegate(Verb::Check, &with_prev_result(&config, conf), path)?),
        Entry::Absent | Entry::Bad => Err(Error::NeverAdded {
            container: at.container.as_str().to_owned(),
            ifname: at.ifname.to_text(),
        }),
    }
}
