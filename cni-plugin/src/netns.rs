//! Whether a container's network namespace is the plugin's own: then a delegate would change the
//! host's interfaces instead of a container's.

use crate::env::Attachment;
use crate::error::Error;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

/// Refuses an attachment to the namespace this thread runs in, unless that is asked for. A path
/// that cannot be looked at passes: the delegate will say what is wrong with it.
///
/// # Errors
/// Code 8.
pub fn refuse_own(at: &Attachment) -> Result<(), Error> {
    let own = identity(OsStr::new("/proc/thread-self/ns/net"));
    let same = own.is_some() && own == identity(&at.netns);
    if same && !at.netns_override {
        return Err(Error::OwnNetns(at.netns.to_string_lossy().into_owned()));
    }
    Ok(())
}

/// A namespace is one inode, however many paths lead to it.
fn identity(path: &OsStr) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{ContainerId, IfName};

    fn at(netns: &str, netns_override: bool) -> Attachment {
        Attachment {
            container: ContainerId::new(OsStr::new("pod")).unwrap(),
            ifname: IfName::new(OsStr::new("eth0")).unwrap(),
            netns: netns.into(),
            netns_override,
        }
    }

    #[test]
    fn the_own_namespace_is_refused_by_whatever_path() {
        let by_pid = format!("/proc/{}/ns/net", std::process::id());
        for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net", &by_pid] {
            assert_eq!(refuse_own(&at(path, false)).unwrap_err().code(), 8, "{path}");
            assert!(refuse_own(&at(path, true)).is_ok(), "{path}");
        }
    }

    #[test]
    fn anything_else_passes() {
        for path in ["", "/nonexistent", "/proc/self/ns/mnt", "/dev/null", "a\0b"] {
            assert!(refuse_own(&at(path, false)).is_ok(), "{path:?}");
        }
    }
}
