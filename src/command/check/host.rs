//! What files of the host say beside the kernel's settings: who manages a device, how full the neighbour table is.
//!
//! Text in, values out, with one function each that reads the file.

use std::fs;
use std::path::Path;

use super::facts::{Manager, Neighbours};
use crate::model::{IfName, KernelVersion};

/// Kernels before it count permanent entries, too, when the table is full (`neigh_alloc`).
const PERMANENT_ARE_FREE: KernelVersion = KernelVersion(5, 0);
/// `ATF_PERM` (`linux/if_arp.h`).
const PERMANENT: u32 = 4;

/// Who manages a device.
pub(super) fn managers(device: &IfName) -> Vec<Manager> {
    let index = fs::read_to_string(Path::new("/sys/class/net").join(device.as_str()).join("ifindex"));
    let Ok(index) = index else { return Vec::new() };
    let file = |folder: &str| fs::read_to_string(Path::new(folder).join(index.trim())).unwrap_or_default();
    let networkd = is_managed_by_networkd(&file("/run/systemd/netif/links"));
    let network_manager = is_managed_by_network_manager(&file("/run/NetworkManager/devices"));
    [(networkd, Manager::Networkd), (network_manager, Manager::NetworkManager)]
        .into_iter()
        .filter_map(|(managed, who)| managed.then_some(who))
        .collect()
}

/// networkd writes a file for each link, also for those that it leaves alone.
fn is_managed_by_networkd(text: &str) -> bool {
    let state = text.lines().find_map(|line| line.strip_prefix("ADMIN_STATE="));
    state.is_some_and(|state| !matches!(state, "unmanaged" | "initialized" | "pending"))
}

fn is_managed_by_network_manager(text: &str) -> bool {
    text.lines().any(|line| matches!(line.trim(), "managed=true" | "managed=1"))
}

/// How full the table of IPv4 neighbours is; `None` where the kernel does not show its limit (in a container).
pub(super) fn neighbours(kernel: Option<KernelVersion>) -> Option<Neighbours> {
    let limit = fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3").ok()?;
    let limit = limit.trim().parse().ok()?;
    let table = fs::read_to_string("/proc/net/arp").ok()?;
    let count_permanent = kernel.is_some_and(|kernel| kernel < PERMANENT_ARE_FREE);
    Some(Neighbours { used: counting(&table, count_permanent), limit })
}

/// The lines of `/proc/net/arp` that count: address, type, flags, …
fn counting(table: &str, permanent: bool) -> u32 {
    let flags =
        |line: &str| u32::from_str_radix(line.split_whitespace().nth(2)?.trim_start_matches("0x"), 16).ok();
    let counted = table.lines().skip(1).filter_map(flags).filter(|flags| permanent || flags & PERMANENT == 0);
    u32::try_from(counted.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networkd_manages_what_it_configures() {
        for (text, expected) in [
            ("ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/all.network\n", true),
            ("# written\nADMIN_STATE=configuring\n", true),
            ("ADMIN_STATE=failed\n", true),
            ("ADMIN_STATE=unmanaged\nOPER_STATE=routable\n", false),
            ("ADMIN_STATE=initialized\n", false),
            ("", false),
        ] {
            assert_eq!(is_managed_by_networkd(text), expected, "{text}");
        }
    }

    #[test]
    fn network_manager_says_itself_what_it_manages() {
        assert!(is_managed_by_network_manager("[device]\nmanaged=true\n"));
        assert!(!is_managed_by_network_manager("[device]\nmanaged=false\n"));
        assert!(!is_managed_by_network_manager("[device]\nmanaged=unknown\n"));
        assert!(!is_managed_by_network_manager(""));
    }

    #[test]
    fn permanent_neighbours_count_only_on_old_kernels() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.8.0.1         0x1         0x2         02:00:00:00:00:01     *        eth0\n\
                     10.200.2.0       0x1         0x6         02:00:00:00:00:02     *        flannel.1\n";
        assert_eq!(counting(table, false), 1);
        assert_eq!(counting(table, true), 2);
        assert_eq!(counting("", true), 0);
    }
}
