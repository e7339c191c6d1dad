//! ADD: build the delegate's configuration, save it, run the delegate, relay its result.

use crate::commands::detach;
use crate::delegate::Delegate;
use crate::delegate_config::{self, DelegateConfig, Template};
use crate::env::{Attachment, PluginPath, Verb};
use crate::error::Error;
use crate::log;
use crate::netconf::NetConf;
use crate::state::{Slot, StateDir, StateFile};
use crate::{netns, result, stale_bridge, subnet_env};

/// Attaches a container and returns what to print.
///
/// The state is saved before the delegate starts, so that a killed ADD can be undone.
///
/// # Errors
/// Anything that can be known beforehand, without a trace left; else the delegate's error, after
/// its work was undone.
pub fn run(at: &Attachment, path: &PluginPath, conf: &NetConf) -> Result<String, Error> {
    let template = Template::new(conf)?;
    warn(conf);
    netns::refuse_own(at)?;
    let env = subnet_env::wait_for(&conf.subnet_file, conf.subnet_file_wait)?;
    let config = template.fill(&env);
    let delegate = Delegate::find(&config, path)?;
    stale_bridge::settle(conf, &config, &env)?;
    let state = StateDir::new(&conf.data_dir);
    match state.slot(at)? {
        Slot::Fresh(file) => {
            state.save(&file, &config, at)?;
            let _lock = state.lock(&file);
            attach(&delegate, &config).inspect_err(|_| undo(path, &config, (&state, &file)))
        }
        // Still plugged in by an earlier ADD: a failure must neither undo that one nor lose its state.
        Slot::Taken(file) => {
            let _lock = state.lock(&file);
            let result = attach(&delegate, &config)?;
            state.save(&file, &config, at)?;
            Ok(result)
        }
    }
}

fn attach(delegate: &Delegate, config: &DelegateConfig) -> Result<String, Error> {
    let stdout = delegate.run(Verb::Add, config, &[])?;
    result::relay(&stdout, config)
}

/// Takes back what a failed delegate may have left. The state stays when that fails too, for the
/// runtime's own DEL.
fn undo(path: &PluginPath, config: &DelegateConfig, (state, file): (&StateDir, &StateFile)) {
    match detach(config, path, &[]) {
        Ok(()) => state.remove(file),
        Err(error) => log::note(format_args!("cleaning up after the failed ADD: {error}")),
    }
}

fn warn(conf: &NetConf) {
    for warning in delegate_config::warnings(conf) {
        log::note(warning);
    }
    if conf.prev_result.is_some() {
        log::note("prevResult is ignored: flannel must be the first plugin of its chain");
    }
}
