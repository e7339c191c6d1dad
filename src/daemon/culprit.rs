//! Who might be fighting with us over our device: evidence on this host, and words for the log. Looks, judges nothing.

use std::fs;
use std::path::Path;

use crate::model::IfName;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The program that sent the last change, where the kernel says so.
    pub(super) author: Option<(u32, String)>,
    /// NetworkManager runs, and whether it manages the device (if it says).
    pub(super) network_manager: Option<Option<bool>>,
    /// What systemd-networkd says about the device (`ADMIN_STATE`).
    pub(super) networkd: Option<String>,
}

impl Evidence {
    /// Looks below `root` (`/` but in tests). `author` is a process id.
    pub(super) fn look(root: &Path, device: &IfName, author: Option<u32>) -> Self {
        let read = |path: String| fs::read_to_string(root.join(path)).ok();
        let index = read(format!("sys/class/net/{device}/ifindex")).unwrap_or_default();
        let index = index.trim();
        let comm = |pid: u32| Some((pid, read(format!("proc/{pid}/comm"))?.trim().to_owned()));
        let network_manager = root.join("run/NetworkManager").is_dir().then(|| {
            let managed = value(&read(format!("run/NetworkManager/devices/{index}"))?, "managed")?;
            Some(managed == "true")
        });
        let networkd = read(format!("run/systemd/netif/links/{index}"));
        Self {
            author: author.and_then(comm),
            network_manager,
            networkd: networkd.and_then(|text| value(&text, "ADMIN_STATE")),
        }
    }

    /// Who it likely is and what to do about it.
    pub(super) fn in_words(&self, device: &IfName) -> String {
        let mut words = Vec::new();
        if let Some((pid, name)) = &self.author {
            words.push(format!("the last change came from {name} (process {pid})"));
        }
        match self.network_manager {
            Some(Some(false)) | None => {}
            Some(managed) => words.push(format!(
                "NetworkManager {} {device}: tell it not to, with [keyfile] unmanaged-devices=interface-name:flannel* in \
                 /etc/NetworkManager/conf.d/flannel.conf",
                if managed.is_some() { "manages" } else { "runs and may manage" }
            )),
        }
        if let Some(state) = self.networkd.as_ref().filter(|state| *state != "unmanaged") {
            words.push(format!(
                "systemd-networkd says that {device} is {state}: set Unmanaged=yes for flannel* in a .network file, and \
                 ManageForeignRoutes=no in networkd.conf"
            ));
        }
        if words.is_empty() {
            return format!(
                "no culprit is known; look at `ip monitor` and for a second flanneld, a .link file of udev that matches {device}, \
                 routing daemons and configuration management"
            );
        }
        words.join("; ")
    }
}

/// The value behind `NAME=`.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| Some(line.trim().strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> IfName {
        "flannel.1".parse().unwrap()
    }

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn evidence_is_read_from_the_places_where_each_manager_leaves_it() {
        let index = ("sys/class/net/flannel.1/ifindex", "7\n");
        let root = host(&[
            index,
            ("run/NetworkManager/devices/7", "[device]\nmanaged=true\n"),
            ("run/systemd/netif/links/7", "# private\nADMIN_STATE=configured\nOPER_STATE=routable\n"),
            ("proc/12/comm", "zebra\n"),
        ]);
        let found = Evidence::look(root.path(), &device(), Some(12));
        let expected = Evidence {
            author: Some((12, "zebra".to_owned())),
            network_manager: Some(Some(true)),
            networkd: Some("configured".to_owned()),
        };
        assert_eq!(found, expected);
        let elsewhere = host(&[index, ("run/NetworkManager/devices/8", "managed=true")]);
        let found = Evidence::look(elsewhere.path(), &device(), Some(12));
        assert_eq!(found, Evidence { network_manager: Some(None), ..Evidence::default() });
        assert_eq!(Evidence::look(host(&[]).path(), &device(), None), Evidence::default());
    }

    #[test]
    fn each_culprit_is_named_with_a_cure() {
        let nothing = Evidence::default();
        let cases = [
            (nothing.clone(), vec!["no culprit is known", "second flanneld", "flannel.1"]),
            (
                Evidence { author: Some((12, "zebra".to_owned())), ..nothing.clone() },
                vec!["zebra (process 12)"],
            ),
            (
                Evidence { network_manager: Some(Some(true)), ..nothing.clone() },
                vec!["NetworkManager manages flannel.1", "unmanaged-devices"],
            ),
            (
                Evidence { network_manager: Some(None), ..nothing.clone() },
                vec!["runs and may manage flannel.1"],
            ),
            (Evidence { network_manager: Some(Some(false)), ..nothing.clone() }, vec!["no culprit"]),
            (
                Evidence { networkd: Some("configured".to_owned()), ..nothing.clone() },
                vec!["systemd-networkd says that flannel.1 is configured", "Unmanaged=yes"],
            ),
            (Evidence { networkd: Some("unmanaged".to_owned()), ..nothing }, vec!["no culprit"]),
        ];
        for (evidence, parts) in cases {
            let words = evidence.in_words(&device());
            for part in parts {
                assert!(words.contains(part), "{part}: {words}");
            }
        }
    }
}
