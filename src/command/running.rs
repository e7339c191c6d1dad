//! Whether a daemon runs on this host: ours, an older one, or the Go daemon. Only looks.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the kernel calls the process of either daemon.
const NAME: &str = "flanneld";

/// The processes, as this process counts them, that would put back what is removed from this network namespace.
///
/// A daemon in another process namespace is not seen here; its socket is.
pub(super) fn daemons() -> Vec<u32> {
    let Ok(own) = fs::read_link("/proc/self/ns/net") else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = numbers.filter(|number| *number != std::process::id());
    let mut found: Vec<u32> = others.filter(|number| is_daemon(*number, &own)).collect();
    found.sort_unstable();
    found
}

fn is_daemon(number: u32, network: &Path) -> bool {
    let folder = Path::new("/proc").join(number.to_string());
    let named = fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim_end() == NAME);
    named
        && fs::read_link(folder.join("ns/net")).is_ok_and(|namespace| namespace == network)
        && fs::read(folder.join("cmdline")).is_ok_and(|words| !is_command(&words))
}

/// Whether the words, each ended by a zero byte, run a command instead of the daemon. A zombie has none: it is no daemon.
fn is_command(words: &[u8]) -> bool {
    let first = words.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    words.is_empty() || super::find(OsStr::from_bytes(first)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_daemons_by_their_first_word() {
        for (words, expected) in [
            (&b"/usr/local/sbin/flanneld\0-ip-masq\0"[..], false),
            (b"/usr/local/sbin/flanneld\0", false),
            (b"flanneld\0status\0--json\0", true),
            (b"flanneld\0-etcd-prefix\0status\0", false),
            (b"", true),
        ] {
            assert_eq!(is_command(words), expected, "{words:?}");
        }
    }
}
