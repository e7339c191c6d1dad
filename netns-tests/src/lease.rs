//! A lease as it stands in etcd, read and written the way every flannel version does (contract sections 6.1 and 6.3).

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::etcd::KeyValue;

/// One key under `PREFIX/subnets` with a vxlan lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// the key with the revisions and the etcd lease
    pub stored: KeyValue,
    /// e.g. `10.200.88.0/24`
    pub subnet: String,
    /// `PublicIP`
    pub public_ip: Ipv4Addr,
    /// `VtepMAC`
    pub vtep_mac: String,
}

impl Lease {
    /// Reads a key and its value.
    ///
    /// # Errors
    /// When either is not a vxlan lease.
    pub fn parse(stored: KeyValue) -> Result<Self> {
        let name = stored.key.rsplit('/').next().context("a key without a name")?;
        let subnet = name.replace('-', "/");
        let value: Value = serde_json::from_str(&stored.value).context("the lease's value")?;
        let text = |pointer: &str| {
            let text = value.pointer(pointer).and_then(Value::as_str);
            text.with_context(|| format!("the lease {name} has no {pointer}"))
        };
        let public_ip = text("/PublicIP")?.parse().context("PublicIP")?;
        let vtep_mac = text("/BackendData/VtepMAC")?.to_owned();
        Ok(Self { stored, subnet, public_ip, vtep_mac })
    }

    /// The network address of the subnet.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        let address = self.subnet.split('/').next().and_then(|text| text.parse().ok());
        address.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }
}

/// The value a flannel daemon of any version writes for a vxlan lease.
#[must_use]
pub fn value(public_ip: &str, vtep_mac: &str) -> String {
    // Written out, since the order of the keys is part of the format.
    let data = json!({ "VNI": 1, "VtepMAC": vtep_mac });
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#)
}
