//! Kernel settings that forwarding depends on: read, warned about with the cure, never changed.

use std::fs;
use std::path::Path;

use crate::model::IfName;

/// The settings as the kernel shows them; `None`: it does not have the setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelSettings {
    /// `net.ipv4.ip_forward`
    pub ip_forward: Option<u32>,
    /// `net.bridge.bridge-nf-call-iptables`; absent without the module br_netfilter.
    pub bridge_nf_call_iptables: Option<u32>,
    /// `net.ipv4.conf.all.rp_filter`
    pub rp_filter_all: Option<u32>,
    /// `net.ipv4.conf.NAME.rp_filter` of the interfaces that matter.
    pub rp_filter: Vec<(IfName, u32)>,
}

/// Something the operator should change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What is wrong and what comes of it.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

impl KernelSettings {
    /// Reads them for the network namespace of the calling thread. `interfaces`: ours and the external one.
    #[must_use]
    pub fn read(interfaces: &[IfName]) -> Self {
        let rp_filter = |name: &str| number(&format!("ipv4/conf/{name}/rp_filter"));
        Self {
            ip_forward: number("ipv4/ip_forward"),
            bridge_nf_call_iptables: number("bridge/bridge-nf-call-iptables"),
            rp_filter_all: rp_filter("all"),
            rp_filter: interfaces
                .iter()
                .filter_map(|name| Some((name.clone(), rp_filter(name.as_str())?)))
                .collect(),
        }
    }
}

fn number(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok()?.trim().parse().ok()
}

/// What the settings mean for forwarding between pods.
#[must_use]
pub fn warnings(settings: &KernelSettings) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |problem: String, cure: String| found.push(Warning { problem, cure });
    if settings.ip_forward == Some(0) {
        let problem = "net.ipv4.ip_forward is 0: nothing is forwarded between pods of different nodes";
        warn(problem.to_owned(), persist("", "net.ipv4.ip_forward=1"));
    }
    let bridge = "rules for services do not see packets that stay on a pod bridge of this node";
    let setting = "net.bridge.bridge-nf-call-iptables=1";
    match settings.bridge_nf_call_iptables {
        None => warn(
            format!("the kernel module br_netfilter is not loaded: {bridge}"),
            persist("modprobe br_netfilter && ", setting),
        ),
        Some(0) => warn(format!("net.bridge.bridge-nf-call-iptables is 0: {bridge}"), persist("", setting)),
        Some(_) => {}
    }
    for (name, own) in &settings.rp_filter {
        // The kernel takes the larger of the two numbers: 0 off, 1 strict, 2 loose.
        if settings.rp_filter_all.unwrap_or_default().max(*own) == 1 {
            warn(
                format!(
                    "rp_filter of {name} is strict: packets are dropped that would be answered through another interface"
                ),
                persist("", &format!("net.ipv4.conf.{}.rp_filter=2", name.as_str().replace('.', "/"))),
            );
        }
    }
    found
}

fn persist(before: &str, setting: &str) -> String {
    format!("{before}sysctl -w {setting}, and put it into a file in /etc/sysctl.d")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> KernelSettings {
        KernelSettings {
            ip_forward: Some(1),
            bridge_nf_call_iptables: Some(1),
            rp_filter_all: Some(0),
            rp_filter: vec![("flannel.1".parse().unwrap(), 0), ("wg0".parse().unwrap(), 2)],
        }
    }

    fn cures(settings: &KernelSettings) -> Vec<String> {
        warnings(settings).into_iter().map(|warning| warning.cure).collect()
    }

    #[test]
    fn good_settings_are_not_mentioned() {
        assert_eq!(warnings(&good()), []);
    }

    #[test]
    fn each_bad_setting_comes_with_its_cure() {
        let persist = ", and put it into a file in /etc/sysctl.d";
        let forward = KernelSettings { ip_forward: Some(0), ..good() };
        assert_eq!(cures(&forward), [format!("sysctl -w net.ipv4.ip_forward=1{persist}")]);
        let bridge = KernelSettings { bridge_nf_call_iptables: Some(0), ..good() };
        assert_eq!(cures(&bridge), [format!("sysctl -w net.bridge.bridge-nf-call-iptables=1{persist}")]);
        let module = KernelSettings { bridge_nf_call_iptables: None, ..good() };
        assert!(cures(&module)[0].starts_with("modprobe br_netfilter && sysctl -w net.bridge."));
        let strict = KernelSettings { rp_filter_all: Some(1), ..good() };
        assert_eq!(cures(&strict), [format!("sysctl -w net.ipv4.conf.flannel/1.rp_filter=2{persist}")]);
    }

    #[test]
    fn loose_wins_over_strict() {
        let settings =
            KernelSettings { rp_filter_all: Some(2), rp_filter: vec![("wg0".parse().unwrap(), 1)], ..good() };
        assert_eq!(warnings(&settings), []);
    }
}
