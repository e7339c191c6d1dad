//! Which pods have an address of a subnet, as host-local (the CNI plugin that hands out addresses) keeps it on disk. Only reads.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv4Network;

/// Where host-local keeps a file per address, a folder per network (its `dataDir`, unless the conflist names another).
const FOLDER: &str = "/var/lib/cni/networks";
/// How many pods are named in the log.
const NAMED: usize = 20;
/// A container id is 64 characters long; the first twelve are what `crictl` and `podman` show.
const SHORT: usize = 12;

/// An address that host-local has given away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    address: Ipv4Addr,
    /// Its container, shortened.
    container: String,
}

/// The pods with an address out of `subnet`, in order of address.
pub(super) fn of(subnet: Ipv4Network) -> Vec<Pod> {
    below(Path::new(FOLDER), subnet)
}

fn below(folder: &Path, subnet: Ipv4Network) -> Vec<Pod> {
    let mut pods = Vec::new();
    for network in fs::read_dir(folder).into_iter().flatten().flatten() {
        for file in fs::read_dir(network.path()).into_iter().flatten().flatten() {
            let Some(address) = file.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if subnet.contains(address) {
                // The first line is the container's id, the second its interface.
                let text = fs::read_to_string(file.path()).unwrap_or_default();
                let id = text.lines().next().unwrap_or_default().trim();
                pods.push(Pod { address, container: id.chars().take(SHORT).collect() });
            }
        }
    }
    pods.sort();
    pods
}

/// `10.200.5.2 (container 0123456789ab), …`, for a log line.
pub(super) fn in_words(pods: &[Pod]) -> String {
    if pods.is_empty() {
        return format!("none known (there is no address of the former subnet in {FOLDER})");
    }
    let named = pods.iter().take(NAMED).map(|pod| format!("{} (container {})", pod.address, pod.container));
    let mut words = named.collect::<Vec<_>>().join(", ");
    if pods.len() > NAMED {
        words.push_str(&format!(" and {} more", pods.len() - NAMED));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_subnet_are_found_whatever_the_network_is_called() {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("cbr0/10.200.5.10", "0123456789abcdef0123\neth0"),
            ("cbr0/10.200.5.9", "feed\r\neth0"),
            ("podman/10.200.6.2", "other\neth0"),
            ("cbr0/last_reserved_ip.0", "10.200.5.10"),
            ("cbr0/lock", ""),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let pods = below(folder.path(), "10.200.5.0/24".parse().unwrap());
        assert_eq!(in_words(&pods), "10.200.5.9 (container feed), 10.200.5.10 (container 0123456789ab)");
        assert_eq!(below(&folder.path().join("none"), "10.200.5.0/24".parse().unwrap()), []);
    }

    #[test]
    fn a_long_list_is_cut_and_an_empty_one_says_where_was_looked() {
        let pod = |number| Pod { address: [10, 200, 5, number].into(), container: "c".to_owned() };
        let words = in_words(&(1..=30).map(pod).collect::<Vec<_>>());
        assert!(words.ends_with("10.200.5.20 (container c) and 10 more"), "{words}");
        assert!(in_words(&[]).contains("/var/lib/cni/networks"));
    }
}
