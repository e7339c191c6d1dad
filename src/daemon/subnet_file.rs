//! Keeps `subnet.env` as the lease asks for, and says once when it cannot.

use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use tracing::{error, info};

use super::Settings;
use super::acquire::OwnLease;
use crate::model::Mtu;
use crate::subnet_env::SubnetEnv;
use crate::subnet_env::file::{self, Outcome};

/// The file and whether it is right.
#[derive(Debug)]
pub(super) struct SubnetFile {
    path: PathBuf,
    network: Ipv4Network,
    mtu: Mtu,
    ip_masq: bool,
    problem: Option<String>,
    /// The subnet that the file named when it was right.
    subnet: Option<Ipv4Network>,
}

impl SubnetFile {
    /// A file that nobody has looked at yet.
    pub(super) fn new(settings: &Settings, network: Ipv4Network, mtu: Mtu) -> Self {
        Self {
            path: settings.subnet_file.clone(),
            network,
            mtu,
            ip_masq: settings.ip_masq,
            problem: None,
            subnet: None,
        }
    }

    /// Whether the file was right when it was looked at last.
    pub(super) fn is_written(&self) -> bool {
        self.subnet.is_some()
    }

    /// Writes the file unless it says already what it should. Returns whether somebody else had changed what we wrote.
    pub(super) fn write_if_changed(&mut self, lease: &OwnLease) -> bool {
        let wanted = SubnetEnv {
            network: self.network,
            subnet: lease.held.subnet,
            mtu: self.mtu,
            ip_masq: self.ip_masq,
        };
        match file::write_if_changed(&self.path, &wanted.render()) {
            Ok(outcome) => {
                let written = outcome == Outcome::Written;
                let repaired = written && self.subnet == Some(wanted.subnet);
                if written {
                    info!(file = %self.path.display(), subnet = %wanted.subnet, mtu = %wanted.mtu, "subnet.env written");
                }
                self.problem = None;
                self.subnet = Some(wanted.subnet);
                repaired
            }
            Err(problem) => {
                let text = problem.to_string();
                if self.problem.as_ref() != Some(&text) {
                    error!(problem = %text, "not ready: subnet.env cannot be written");
                }
                self.problem = Some(text);
                self.subnet = None;
                false
            }
        }
    }
}
