//! Reservations of `host-local` that nobody could free. It makes an address's file and then writes the owner into it; killed
//! in between it leaves an empty file, which no DEL can match and which holds its address for ever.
//!
//! Removing such a file is safe because host-local works under a lock of its own from before it makes the file until the
//! owner is in it: an empty file seen under that lock has no writer any more. Its address was never told to anyone, since
//! host-local answers after writing. (A power cut may empty a file too; then the containers are gone as well.)

use crate::delegate_config::DelegateConfig;
use crate::lock::Lock;
use crate::log;
use serde_json::Value;
use std::fs::{self, DirEntry};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// host-local holds its lock for milliseconds. Should it hang, a later DEL comes here again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Frees what a killed host-local left in the network of this configuration. Nothing that fails here is an error of the
/// command that cleans up.
pub fn sweep(config: &DelegateConfig) {
    let Some(directory) = directory(config) else { return };
    if ownerless(&directory).is_empty() {
        return;
    }
    let announce = || log::note("waiting for host-local, to free what a killed one left");
    let Some(_nobody_reserves) = Lock::acquire(&directory.join("lock"), PATIENCE, announce) else { return };
    for path in ownerless(&directory) {
        if fs::remove_file(&path).is_ok() {
            log::note(format_args!("freed {path:?}: host-local was killed before it wrote the owner"));
        }
    }
}

/// Where host-local keeps the addresses of this network, if it is what hands them out.
fn directory(config: &DelegateConfig) -> Option<PathBuf> {
    let ipam = config.object().get("ipam")?;
    let text = |key: &str| ipam.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = config.text("name");
    let plain = crate::env::is_identifier(name);
    (text("type")? == "host-local" && plain)
        .then(|| Path::new(text("dataDir").unwrap_or("/var/lib/cni/networks")).join(name))
}

fn ownerless(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter(is_ownerless).map(|entry| entry.path()).collect()
}

/// An empty file with the name of an address.
fn is_ownerless(entry: &DirEntry) -> bool {
    let address = entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
    address && entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: &Value) -> DelegateConfig {
        DelegateConfig::from_object(value.as_object().unwrap().clone())
    }

    #[test]
    fn the_directory_is_host_local_s() {
        let of = |ipam: Value| directory(&config(&json!({"name": "cni0", "ipam": ipam})));
        assert_eq!(of(json!({"type": "host-local"})).unwrap(), Path::new("/var/lib/cni/networks/cni0"));
        assert_eq!(
            of(json!({"type": "host-local", "dataDir": ""})).unwrap(),
            Path::new("/var/lib/cni/networks/cni0")
        );
        assert_eq!(of(json!({"type": "host-local", "dataDir": "/run/x"})).unwrap(), Path::new("/run/x/cni0"));
        for other in [json!({"type": "dhcp"}), json!({}), json!("host-local"), json!({"type": 7})] {
            assert_eq!(of(other.clone()), None, "{other}");
        }
        for name in [json!(""), json!(".."), json!("a/b"), json!(7), Value::Null] {
            assert_eq!(
                directory(&config(&json!({"name": name, "ipam": {"type": "host-local"}}))),
                None,
                "{name}"
            );
        }
    }

    #[test]
    fn only_empty_files_named_like_addresses_go() {
        let scratch = tempfile::tempdir().unwrap();
        let network = scratch.path().join("cni0");
        fs::create_dir_all(network.join("10.1.17.9")).unwrap();
        for (name, text) in [
            ("10.1.17.2", "pod\r\neth0"),
            ("10.1.17.3", ""),
            ("fc00::3", ""),
            ("10.1.17.4", " "),
            ("last_reserved_ip.0", ""),
            ("lock", ""),
            ("10.1.17", ""),
        ] {
            fs::write(network.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("lock", network.join("10.1.17.5")).unwrap();
        sweep(&config(&json!({"name": "cni0", "ipam": {"type": "host-local", "dataDir": scratch.path()}})));
        let mut left: Vec<_> = fs::read_dir(&network)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["10.1.17", "10.1.17.2", "10.1.17.4", "10.1.17.5", "10.1.17.9", "last_reserved_ip.0", "lock"]
        );
    }

    #[test]
    fn without_host_local_s_lock_nothing_is_touched() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("cni0")).unwrap();
        fs::write(scratch.path().join("cni0/10.1.17.3"), "").unwrap();
        sweep(&config(&json!({"name": "cni0", "ipam": {"type": "host-local", "dataDir": scratch.path()}})));
        assert!(scratch.path().join("cni0/10.1.17.3").exists());
    }
}
