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
