//! The file flanneld writes for us. `parse` is pure and total; `read` and `wait_for` are the thin
//! part that touches the file system.

use crate::cidr::Cidr;
use crate::error::code;
use crate::log;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What flanneld says about this node. At least one network and one subnet are present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's networks, masked, without duplicates, IPv4 first.
    pub networks: Vec<Cidr>,
    /// This node's subnets, masked, at most one per family, IPv4 first.
    pub subnets: Vec<Cidr>,
    /// The MTU of the overlay; 0 is accepted.
    pub mtu: u32,
    /// flanneld masquerades traffic that leaves the network, so the delegate must not.
    pub flanneld_masquerades: bool,
}

/// Why the text of a `subnet.env` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Keys that are not there; both families are named when neither is.
    #[error("missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A line whose key is known and whose value makes no sense.
    #[error("line {line}: {key}: {problem}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// The key of that line.
        key: &'static str,
        /// What is wrong with the value.
        problem: String,
    },
}

/// Why a `subnet.env` file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SubnetEnvError {
    /// There is no such file: flanneld has not written it, or it writes elsewhere.
    #[error("cannot read {path:?}: {source}")]
    Absent {
        /// The file looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's text cannot be used.
    #[error("{path:?}: {fault}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
}

impl SubnetEnvError {
    /// The specification's code: what may heal by itself is "try again later".
    pub fn code(&self) -> u64 {
        match self {
            Self::Absent { .. } | Self::Bad { fault: Fault::Missing(_), .. } => code::TRY_LATER,
            Self::Unreadable { .. } => code::IO,
            Self::Bad { fault: Fault::Malformed { .. }, .. } => code::BAD_CONFIG,
        }
    }

    /// What the operator should look at.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => None,
            Self::Absent { .. } => Some(
                "flanneld writes this file once it holds a lease: look at flanneld's log and state \
                 (systemctl status flanneld), and compare its -subnet-file with subnetFile of the CNI config"
                    .to_owned(),
            ),
            Self::Bad { .. } => Some(
                "flanneld writes this file whole: look at flanneld's log, and at who else writes to it"
                    .to_owned(),
            ),
        }
    }

    fn may_heal(&self) -> bool {
        self.code() == code::TRY_LATER
    }
}

/// Reads the file once.
///
/// # Errors
/// Absent, unreadable or bad; see [`SubnetEnvError::code`].
pub fn read(path: &Path) -> Result<SubnetEnv, SubnetEnvError> {
    let bytes = std::fs::read(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => SubnetEnvError::Absent { path, source },
            _ => SubnetEnvError::Unreadable { path, source },
        }
    })?;
    parse(&bytes).map_err(|fault| SubnetEnvError::Bad { path: path.to_owned(), fault })
}

/// Reads the file, and again until it is whole or `patience` is over. What cannot heal is
/// reported at once.
///
/// # Errors
/// Those of the last [`read`].
pub fn wait_for(path: &Path, patience: Duration) -> Result<SubnetEnv, SubnetEnvError> {
    const PAUSE: Duration = Duration::from_millis(50);
    let start = Instant::now();
    let mut outcome = read(path);
    if let Err(error) = &outcome
        && error.may_heal()
        && !patience.is_zero()
    {
        log::note(format_args!("{error}; waiting up to {} s", patience.as_secs()));
    }
    while outcome.as_ref().is_err_and(SubnetEnvError::may_heal) && start.elapsed() < patience {
        std::thread::sleep(PAUSE);
        outcome = read(path);
    }
    outcome
}

/// Understands the text; never panics, whatever the bytes.
///
/// # Errors
/// The first malformed line, else all missing keys.
pub fn parse(text: &[u8]) -> Result<SubnetEnv, Fault> {
    let mut fields = Fields::default();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        fields.take_line(line).map_err(|(key, problem)| Fault::Malformed {
            line: index.saturating_add(1),
            key,
            problem,
        })?;
    }
    fields.finish()
}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";
const KEYS: [&str; 6] = [NETWORK, IPV6_NETWORK, SUBNET, IPV6_SUBNET, MTU, IPMASQ];

/// The values seen so far; a later line replaces an earlier one.
#[derive(Default)]
struct Fields {
    networks: Option<Vec<Cidr>>,
    ipv6_networks: Option<Vec<Cidr>>,
    subnet: Option<Cidr>,
    ipv6_subnet: Option<Cidr>,
    mtu: Option<u32>,
    masquerades: Option<bool>,
}

impl Fields {
    /// Unknown lines are nobody's business; for a known key the value must make sense.
    fn take_line(&mut self, line: &[u8]) -> Result<(), (&'static str, String)> {
        let mut halves = line.splitn(2, |byte| *byte == b'=');
        let name = halves.next().unwrap_or_default();
        let value = halves.next();
        let name = if value.is_none() { name.trim_ascii_end() } else { name };
        let Some(key) = KEYS.into_iter().find(|key| key.as_bytes() == name) else { return Ok(()) };
        let value = value.ok_or_else(|| (key, "no '=' after the key".to_owned()))?;
        let value = std::str::from_utf8(value).map_err(|_| (key, "not UTF-8".to_owned()))?;
        self.take(key, value.trim_ascii()).map_err(|problem| (key, problem))
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            NETWORK => self.networks = Some(networks(value, Family::V4)?),
            IPV6_NETWORK if value.is_empty() => self.ipv6_networks = None,
            IPV6_NETWORK => self.ipv6_networks = Some(networks(value, Family::V6)?),
            SUBNET => self.subnet = Some(network(value, Family::V4)?),
            IPV6_SUBNET if value.is_empty() => self.ipv6_subnet = None,
            IPV6_SUBNET => self.ipv6_subnet = Some(network(value, Family::V6)?),
            MTU => self.mtu = Some(mtu(value)?),
            _ => self.masquerades = Some(truth(value)?),
        }
        Ok(())
    }

    fn finish(self) -> Result<SubnetEnv, Fault> {
        let no_network = self.networks.is_none() && self.ipv6_networks.is_none();
        let no_subnet = self.subnet.is_none() && self.ipv6_subnet.is_none();
        let absent =
            [no_network, no_network, no_subnet, no_subnet, self.mtu.is_none(), self.masquerades.is_none()];
        let (Some(mtu), Some(flanneld_masquerades), false) =
            (self.mtu, self.masquerades, no_network || no_subnet)
        else {
            let missing = KEYS.into_iter().zip(absent).filter_map(|(key, absent)| absent.then_some(key));
            return Err(Fault::Missing(missing.collect()));
        };
        let networks = [self.networks, self.ipv6_networks].into_iter().flatten().flatten().collect();
        let subnets = [self.subnet, self.ipv6_subnet].into_iter().flatten().collect();
        Ok(SubnetEnv { networks, subnets, mtu, flanneld_masquerades })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn networks(list: &str, family: Family) -> Result<Vec<Cidr>, String> {
    let mut found = Vec::new();
    for text in list.split(',') {
        let network = network(text, family)?;
        if !found.contains(&network) {
            found.push(network);
        }
    }
    Ok(found)
}

fn network(text: &str, family: Family) -> Result<Cidr, String> {
    let cidr: Cidr = text.parse().map_err(|error: crate::cidr::NotACidr| error.to_string())?;
    match (family, cidr.is_ipv4()) {
        (Family::V4, true) | (Family::V6, false) => Ok(cidr.network()),
        (Family::V4, false) => Err(format!("{text} is IPv6, IPv4 expected")),
        (Family::V6, true) => Err(format!("{text} is IPv4, IPv6 expected")),
    }
}

fn mtu(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let value = digits.then(|| text.parse().ok()).flatten();
    value.ok_or_else(|| format!("{text:?} is not a number from 0 to {}", u32::MAX))
}

/// Only the two words flanneld writes: reading `TRUE` as false would turn on a second masquerade.
fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
