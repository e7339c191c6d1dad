//! DEL: run the delegate with what ADD saved; forget it only once that succeeded.

use crate::commands::{detach, present_config, with_prev_result};
use crate::delegate_config::DelegateConfig;
use crate::env::{Attachment, PluginPath};
use crate::error::Error;
use crate::log;
use crate::netconf::NetConf;
use crate::netns;
use crate::state::{Entry, StateDir};
use crate::version::CniVersion;

/// Detaches a container. Repeating it is a success, and so is detaching what was never attached.
///
/// # Errors
/// State that cannot be read, or the delegate's failure; the state stays for the next DEL.
pub fn run(at: &Attachment, path: &PluginPath, conf: &NetConf) -> Result<(), Error> {
    netns::refuse_own(at)?;
    let state = StateDir::new(&conf.data_dir);
    let (file, entry, _lock) = state.find_locked(at)?;
    match entry {
        Entry::Saved(config, _) => {
            detach(&for_del(&config, conf), path, &[])?;
            state.remove(&file);
        }
        Entry::Bad => {
            log::note("the saved state is unusable, undoing with the present configuration");
            best_effort(path, conf);
            state.remove(&file);
        }
        Entry::Absent => {
            best_effort(path, conf);
            state.remove_temporaries(at);
        }
    }
    Ok(())
}

/// Undoes with the configuration ADD would use now: it frees an address whose state was lost, and
/// delegates tolerate a DEL of what is not there. Without a usable configuration nothing is run.
pub fn best_effort(path: &PluginPath, conf: &NetConf) {
    if let Ok(config) = present_config(conf) {
        let config = if conf.version < CniVersion::V0_4_0 { config } else { with_prev_result(&config, conf) };
        if let Err(error) = detach(&config, path, &[]) {
            log::note(format_args!("ignored: {error}"));
        }
    }
}

/// The saved configuration; with the result the runtime remembers if both speak the same version.
fn for_del(saved: &DelegateConfig, conf: &NetConf) -> DelegateConfig {
    let same = saved.text("cniVersion") == conf.version.as_str();
    if same && conf.version >= CniVersion::V0_4_0 { with_prev_result(saved, conf) } else { saved.clone() }
}
