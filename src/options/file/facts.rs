//! What Ansible would know of this host, as values. Gathering them is somebody else's work.

use std::net::Ipv4Addr;

/// A host as templates see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub hostname: String,
    /// The home directory of the user who runs the daemon.
    pub home: String,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

#[cfg(any(test, fuzzing))]
impl Facts {
    /// A host for tests and fuzzing; its last interface has no address.
    pub(crate) fn of_a_worker() -> Self {
        let interface = |name: &str, address: &str| Interface {
            name: name.to_owned(),
            mac: Some("02:00:00:00:00:01".to_owned()),
            active: true,
            ipv4: address.parse().ok().map(|address| (address, 24)),
        };
        Self {
            hostname: "worker01".to_owned(),
            home: "/home/operator".to_owned(),
            interfaces: vec![
                interface("tap0", "10.8.0.112"),
                interface("wg0", "10.8.0.111"),
                interface("tun-a", "10.9.0.1"),
                interface("dummy0", "none"),
            ],
        }
    }
}

/// An interface of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC, if it has one.
    pub mac: Option<String>,
    /// Whether it is up.
    pub active: bool,
    /// Its first IPv4 address and the length of its prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
}

impl Interface {
    /// The name as it stands behind `ansible_`.
    pub(super) fn variable(&self) -> String {
        self.name.replace('-', "_")
    }
}
