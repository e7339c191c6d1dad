//! The network config that the operator wrote to `PREFIX/config`: parsed, defaulted, validated.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::json::FoldedObject;
use super::{IfName, Mtu, TxChecksum, Vni};

/// A valid network config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay network, host bits clear.
    pub network: Ipv4Network,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be leased (its network address).
    pub subnet_min: Ipv4Addr,
    /// Last subnet that may be leased (its network address).
    pub subnet_max: Ipv4Addr,
    /// The operator wants nftables instead of iptables.
    pub enable_nftables: bool,
    /// The VXLAN options of `Backend`.
    pub vxlan: VxlanConfig,
}

/// `Backend` of type `vxlan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port; `None` is the kernel's default (8472).
    pub port: Option<u16>,
    /// MTU outside of the tunnel; `None` takes the external interface's.
    pub mtu: Option<Mtu>,
    /// Group policy extension.
    pub gbp: bool,
    /// Learn peers from received packets.
    pub learning: bool,
    /// Route directly to peers on the same link.
    pub direct_routing: bool,
    /// TX checksum offload of the devices, for nodes that are not told themselves.
    pub tx_checksum: Option<TxChecksum>,
}

/// Why a network config cannot be used. Each message says what to change in the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object, or a key of the wrong type.
    #[error("network config is not valid: {0}")]
    Json(String),
    /// A rule of the contract is broken.
    #[error("network config is not valid: {key}: {problem}")]
    Rule {
        /// The key as the contract spells it.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Valid for the Go daemon, but not built here.
    #[error(
        "network config asks for {key} {value:?}, which this flanneld does not support (supported: {supported})"
    )]
    Unsupported {
        /// The key as the contract spells it.
        key: &'static str,
        /// What it asks for.
        value: String,
        /// What could be asked for instead.
        supported: &'static str,
    },
}

impl ConfigError {
    /// An unsupported config ends the start; a wrong one is waited for to be corrected.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }
}

fn rule(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Rule { key, problem: problem.into() }
}

impl NetworkConfig {
    /// Reads the value of `PREFIX/config`.
    ///
    /// # Errors
    /// When it is not JSON, breaks a rule, or asks for something that is not built.
    pub fn from_json(value: &[u8]) -> Result<Self, ConfigError> {
        let object: FoldedObject =
            serde_json::from_slice(value).map_err(|error| ConfigError::Json(error.to_string()))?;
        refuse_other_families(&object)?;
        let network = network(&object)?;
        let subnet_len = subnet_len(network, get(&object, "SubnetLen")?.unwrap_or(0))?;
        let size = 1_u32 << (32 - subnet_len);
        let first = u32::from(network.network());
        let last = u32::from(network.broadcast());
        let min = bound(&object, "SubnetMin", network, subnet_len)?.unwrap_or((first + size).into());
        let max = bound(&object, "SubnetMax", network, subnet_len)?.unwrap_or((last - (size - 1)).into());
        if min > max {
            return Err(rule(
                "SubnetMin",
                format!("{min} is above SubnetMax {max}, which leaves no subnet to lease"),
            ));
        }
        Ok(Self {
            network,
            subnet_len,
            subnet_min: min,
            subnet_max: max,
            enable_nftables: get(&object, "EnableNFTables")?.unwrap_or(false),
            vxlan: backend(&object)?,
        })
    }

    /// Whether a subnet could have been leased under this config: right length, within the bounds.
    #[must_use]
    pub fn allows(&self, subnet: Ipv4Network) -> bool {
        subnet.prefix() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }
}

fn get<'a, T: serde::Deserialize<'a>>(
    object: &FoldedObject<'a>,
    key: &'static str,
) -> Result<Option<T>, ConfigError> {
    object.get(key).map_err(ConfigError::Json)
}

fn refuse_other_families(object: &FoldedObject<'_>) -> Result<(), ConfigError> {
    let ipv4 = get(object, "EnableIPv4")?.unwrap_or(true);
    let ipv6 = get(object, "EnableIPv6")?.unwrap_or(false);
    let unsupported = |key, value: bool| ConfigError::Unsupported {
        key,
        value: value.to_string(),
        supported: "IPv4 alone: EnableIPv4 true, EnableIPv6 false",
    };
    match (ipv4, ipv6) {
        (true, false) => Ok(()),
        (_, true) => Err(unsupported("EnableIPv6", true)),
        (false, false) => Err(unsupported("EnableIPv4", false)),
    }
}

fn network(object: &FoldedObject<'_>) -> Result<Ipv4Network, ConfigError> {
    let missing = || rule("Network", "is missing (expected a CIDR such as 10.200.0.0/16)");
    let text: String = get(object, "Network")?.ok_or_else(missing)?;
    let wrong = || rule("Network", format!("{text:?} is not an IPv4 CIDR (expected e.g. 10.200.0.0/16)"));
    if !text.contains('/') {
        return Err(wrong());
    }
    let parsed: Ipv4Network = text.parse().map_err(|_| wrong())?;
    Ipv4Network::new(parsed.network(), parsed.prefix()).map_err(|_| wrong())
}

fn subnet_len(network: Ipv4Network, given: u64) -> Result<u8, ConfigError> {
    let length = network.prefix();
    match given {
        0 if length <= 22 => Ok(24),
        0 if length <= 28 => Ok(length + 2),
        0 => Err(rule(
            "Network",
            format!("{network} is too small to hold four subnets (expected /28 or larger)"),
        )),
        31.. => Err(rule("SubnetLen", format!("{given} is too long (expected at most 30)"))),
        _ => match u8::try_from(given) {
            Ok(given) if given >= length + 2 => Ok(given),
            _ => Err(rule(
                "SubnetLen",
                format!(
                    "{given} leaves fewer than four subnets in {network} (expected at least {})",
                    length + 2
                ),
            )),
        },
    }
}

fn bound(
    object: &FoldedObject<'_>,
    key: &'static str,
    network: Ipv4Network,
    subnet_len: u8,
) -> Result<Option<Ipv4Addr>, ConfigError> {
    let Some(text) = get::<String>(object, key)? else { return Ok(None) };
    let address: Ipv4Addr =
        text.parse().map_err(|_| rule(key, format!("{text:?} is not an IPv4 address")))?;
    if !network.contains(address) {
        return Err(rule(key, format!("{address} is outside of Network {network}")));
    }
    if Ipv4Network::new(address, subnet_len).is_ok_and(|subnet| subnet.network() != address) {
        return Err(rule(key, format!("{address} is not the first address of a /{subnet_len} subnet")));
    }
    Ok(Some(address))
}

fn backend(object: &FoldedObject<'_>) -> Result<VxlanConfig, ConfigError> {
    let backend: Option<FoldedObject> = get(object, "Backend")?;
    let kind: String = match backend {
        None => "udp".to_owned(),
        Some(backend) => {
            let kind: String = get(&backend, "Type")?.unwrap_or_default();
            if kind.eq_ignore_ascii_case("vxlan") {
                return vxlan(&backend);
            }
            kind
        }
    };
    Err(ConfigError::Unsupported { key: "Backend.Type", value: kind, supported: "vxlan" })
}

fn vxlan(backend: &FoldedObject<'_>) -> Result<VxlanConfig, ConfigError> {
    let vni = match get::<u64>(backend, "VNI")? {
        None => Vni::DEFAULT,
        Some(number) => vni(number)?,
    };
    let mtu = match get::<u64>(backend, "MTU")? {
        None | Some(0) => None,
        Some(bytes) => Some(Mtu::try_from(bytes).map_err(|error| rule("Backend.MTU", error.to_string()))?),
    };
    Ok(VxlanConfig {
        vni,
        port: get(backend, "Port")?.filter(|port| *port != 0),
        mtu,
        gbp: get(backend, "GBP")?.unwrap_or(false),
        learning: get(backend, "Learning")?.unwrap_or(false),
        direct_routing: get(backend, "DirectRouting")?.unwrap_or(false),
        tx_checksum: tx_checksum(backend)?,
    })
}

/// Not all that VXLAN has: the device is named after it, and the kernel's names are short.
fn vni(number: u64) -> Result<Vni, ConfigError> {
    let vni = Vni::try_from(number).ok();
    vni.filter(|vni| IfName::of_vtep(*vni).as_str().parse::<IfName>().is_ok()).ok_or_else(|| {
        let expected =
            "expected 0 to 9999999: the name of the device, flannel.VNI, has at most 15 characters";
        rule("Backend.VNI", format!("{number} is out of range ({expected})"))
    })
}

fn tx_checksum(backend: &FoldedObject<'_>) -> Result<Option<TxChecksum>, ConfigError> {
    let Some(text) = get::<String>(backend, "TxChecksum")? else { return Ok(None) };
    text.parse().map(Some).map_err(|error| rule("Backend.TxChecksum", format!("is {text:?} ({error})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::from_json(text.as_bytes())
    }

    fn with(fields: &str) -> Result<NetworkConfig, ConfigError> {
        parse(&format!(r#"{{"Backend":{{"Type":"vxlan"}},{fields}}}"#))
    }

    #[test]
    fn what_the_role_writes_gets_the_defaults() {
        let config = parse(r#"{"Network":"10.200.0.0/16","Backend":{"Type": "vxlan"}}"#).unwrap();
        assert_eq!(config.network, "10.200.0.0/16".parse().unwrap());
        assert_eq!(
            (config.subnet_len, config.subnet_min, config.subnet_max),
            (24, Ipv4Addr::new(10, 200, 1, 0), Ipv4Addr::new(10, 200, 255, 0))
        );
        let plain = VxlanConfig {
            vni: Vni::DEFAULT,
            port: None,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            tx_checksum: None,
        };
        assert_eq!((config.vxlan, config.enable_nftables), (plain, false));
    }

    #[test]
    fn subnet_length_follows_the_network() {
        for (network, expected) in
            [("10.0.0.0/8", 24), ("10.0.0.0/22", 24), ("10.0.0.0/23", 25), ("10.0.0.0/28", 30)]
        {
            assert_eq!(with(&format!(r#""Network":"{network}""#)).unwrap().subnet_len, expected, "{network}");
        }
        assert_eq!(with(r#""Network":"10.0.0.0/16","SubnetLen":18"#).unwrap().subnet_len, 18);
    }

    #[test]
    fn keys_are_read_in_any_case_host_bits_are_dropped_and_unknown_keys_ignored() {
        let config = parse(r#"{"network":"10.3.4.5/16","SUBNETLEN":20,"x":{},"backend":{"type":"VXLAN","vni":42,"PORT":4789,"mtu":1400,"directROUTING":true,"txchecksum":"off","Name":"f"}}"#).unwrap();
        assert_eq!(config.network, "10.3.0.0/16".parse().unwrap());
        assert_eq!(config.subnet_min, Ipv4Addr::new(10, 3, 16, 0));
        assert_eq!(
            (config.vxlan.vni.get(), config.vxlan.port, config.vxlan.direct_routing),
            (42, Some(4789), true)
        );
        assert_eq!(config.vxlan.mtu.unwrap().get(), 1400);
        assert_eq!(config.vxlan.tx_checksum, Some(TxChecksum::Off));
    }

    #[test]
    fn every_rule_is_checked_and_its_key_named() {
        let rules = [
            (r#""x":0"#, "Network: is missing"),
            (r#""Network":"10.0.0.0""#, "Network: \"10.0.0.0\" is not"),
            (r#""Network":"fd00::/48""#, "Network: \"fd00::/48\" is not"),
            (r#""Network":"10.0.0.0/29""#, "Network: 10.0.0.0/29 is too small"),
            (r#""Network":"10.0.0.0/16","SubnetLen":31"#, "SubnetLen: 31 is too long"),
            (r#""Network":"10.0.0.0/16","SubnetLen":17"#, "SubnetLen: 17 leaves fewer"),
            (r#""Network":"10.0.0.0/16","SubnetLen":24.0"#, "SubnetLen: "),
            (r#""Network":"10.0.0.0/16","SubnetLen":"24""#, "SubnetLen: "),
            (r#""Network":"10.0.0.0/16","SubnetMin":"10.1.0.0""#, "SubnetMin: 10.1.0.0 is outside"),
            (r#""Network":"10.0.0.0/16","SubnetMax":"10.0.7.1""#, "SubnetMax: 10.0.7.1 is not the first"),
            (
                r#""Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0""#,
                "SubnetMin: 10.0.9.0 is above",
            ),
            (
                r#""Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}"#,
                "Backend.VNI: 16777216 is out of range (expected 0 to 9999999: ",
            ),
            (
                r#""Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":10000000}"#,
                "Backend.VNI: 10000000 is out of range (expected 0 to 9999999: ",
            ),
            (
                r#""Network":"10.0.0.0/16","Backend":{"Type":"vxlan","TxChecksum":"OFF"}"#,
                "Backend.TxChecksum: is \"OFF\" (expected auto, keep, on or off)",
            ),
        ];
        for (fields, expected) in rules {
            let message = with(fields).unwrap_err().to_string();
            assert!(message.contains(expected), "{fields}: {message}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let refusals = [
            (r#"{"Network":"10.0.0.0/16"}"#, "Backend.Type \"udp\""),
            (r#"{"Network":"10.0.0.0/16","Backend":{}}"#, "Backend.Type \"\""),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw"}}"#, "Backend.Type \"host-gw\""),
            (
                r#"{"Network":"10.0.0.0/16","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#,
                "EnableIPv6 \"true\"",
            ),
            (
                r#"{"Network":"10.0.0.0/16","EnableIPv4":false,"Backend":{"Type":"vxlan"}}"#,
                "EnableIPv4 \"false\"",
            ),
        ];
        for (text, expected) in refusals {
            let error = parse(text).unwrap_err();
            assert!(error.is_fatal() && error.to_string().contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(length in 0_u8..=33, subnet in 0_u64..40, min: u32, noise in ".*") {
            let _ = parse(&noise);
            let min = Ipv4Addr::from(min);
            let _ = with(&format!(r#""Network":"0.0.0.0/{length}","SubnetLen":{subnet}"#));
            let _ = with(&format!(r#""Network":"0.0.0.0/{length}","SubnetLen":{subnet},"SubnetMin":"{min}""#));
        }
    }
}
