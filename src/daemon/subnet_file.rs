//! Keeps `subnet.env` as the lease asks for, and says once when it cannot.

use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use tracing::{error, info};

use super::Settings;
use super::acquire::OwnLease;
use crate::model::Mtu;
use crate::subnet_env::{SubnetEnv, file};

/// The file and whether it is right.
#[derive(Debug)]
pub struct SubnetFile {
    path: PathBuf,
    network: Ipv4Network,
    mtu: Mtu,
    ip_masq: bool,
    problem: Option<String>,
    written: bool,
}

impl SubnetFile {
    /// A file that nobody has looked at yet.
    pub fn new(settings: &Settings, network: Ipv4Network, mtu: Mtu) -> Self {
        Self {
            path: settings.subnet_file.clone(),
            network,
            mtu,
            ip_masq: settings.ip_masq,
            problem: None,
            written: false,
        }
    }

    /// Whether the file was right when it was looked at last.
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Writes the file unless it says already what it should.
    pub fn write_if_changed(&mut self, lease: &OwnLease) {
        let wanted =
            SubnetEnv { network: self.network, subnet: lease.held.subnet, mtu: self.mtu, ip_masq: self.ip_masq };
        match file::write_if_changed(&self.path, &wanted.render()) {
            Ok(changed) => {
                if changed {
                    info!(file = %self.path.display(), subnet = %wanted.subnet, mtu = %wanted.mtu, "subnet.env written");
                }
                self.problem = None;
                self.written = true;
            }
            Err(problem) => {
                let text = problem.to_string();
                if self.problem.as_ref() != Some(&text) {
                    error!(problem = %text, "not ready: subnet.env cannot be written");
                }
                self.problem = Some(text);
                self.written = false;
            }
        }
    }
}
