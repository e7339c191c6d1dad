//! A lease as it stands in etcd: the key names the subnet, the value says how to reach it.
//!
//! The text forms are shared with the Go daemon; unknown keys are ignored on both sides.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::Serialize;

use super::MacAddr;
use super::json::FoldedObject;

/// The `BackendType` of leases this daemon can use.
pub const BACKEND_VXLAN: &str = "vxlan";

/// A subnet and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased subnet, host bits clear.
    pub subnet: Ipv4Network,
    /// The value of the key.
    pub attrs: LeaseAttrs,
}

/// The value of a lease key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Address that peers send encapsulated packets to. `0.0.0.0` when the value names none.
    pub public_ip: Ipv4Addr,
    /// `BackendType`, empty when the value names none.
    pub backend_type: String,
    /// `BackendData`, if it can be read as that of a VXLAN lease.
    pub vxlan: Option<VxlanData>,
    /// Which machine wrote the value; the Go daemon writes none.
    pub node_id: Option<NodeId>,
    /// In which run of that machine's kernel; the Go daemon writes none.
    pub boot_id: Option<BootId>,
}

/// `BackendData` of a VXLAN lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    /// VNI the node uses.
    pub vni: u32,
    /// Hardware address of the node's VXLAN device.
    pub mac: MacAddr,
}

/// A hash of the machine id: tells two nodes with the same public IP apart. 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// FNV-1a of the machine id, so that the id itself (which `machine-id(5)` calls confidential) is not published.
    #[must_use]
    pub fn from_machine_id(machine_id: &str) -> Self {
        Self(fingerprint(machine_id))
    }
}

/// A hash of the kernel's boot id. A restarted daemon has the same one, and no daemon outlives its kernel: who writes with our
/// [`NodeId`] and another `BootId` while we run is a clone of our machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId(u64);

impl BootId {
    /// From the content of `/proc/sys/kernel/random/boot_id`; `None` when it is empty.
    #[must_use]
    pub fn from_kernel(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self(fingerprint(text)))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn fingerprint(id: &str) -> u64 {
    let text = id.trim().bytes().chain(*b"flanneld");
    text.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = LeaseError;

    fn from_str(text: &str) -> Result<Self, LeaseError> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(LeaseError::Value("NodeID: expected 16 hex digits".to_owned()));
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|error| LeaseError::Value(format!("NodeID: {error}")))
    }
}

/// A key or value that is not a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The last part of the key is not `A.B.C.D-LEN`.
    #[error("key {0:?} does not name a subnet (expected A.B.C.D-LEN with host bits clear)")]
    Key(String),
    /// The value is not the JSON of a lease.
    #[error("value is not a lease: {0}")]
    Value(String),
}

/// The last part of a lease's key: `10.200.88.0-24`.
#[must_use]
pub fn key_of(subnet: Ipv4Network) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix())
}

/// Reads the last part of a lease's key.
///
/// # Errors
/// When it is not `A.B.C.D-LEN` with LEN at most 31 and host bits clear; dual-stack keys are not understood. A subnet has one
/// spelling only: with two keys for one, the end of one lease would take away the other.
pub fn parse_key(name: &str) -> Result<Ipv4Network, LeaseError> {
    let wrong = || LeaseError::Key(name.to_owned());
    let (address, length) = name.split_once('-').ok_or_else(wrong)?;
    let one_spelling = length == "0" || !length.starts_with('0');
    if !one_spelling || length.len() > 2 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    match Ipv4Network::new(address, length) {
        Ok(subnet) if length <= 31 && subnet.network() == address => Ok(subnet),
        _ => Err(wrong()),
    }
}

impl LeaseAttrs {
    /// The value this node writes for itself.
    #[must_use]
    pub fn vxlan(public_ip: Ipv4Addr, data: VxlanData, node_id: Option<NodeId>) -> Self {
        Self { public_ip, backend_type: BACKEND_VXLAN.to_owned(), vxlan: Some(data), node_id, boot_id: None }
    }

    /// The same, written in this run of the kernel.
    #[must_use]
    pub fn since_boot(self, boot_id: Option<BootId>) -> Self {
        Self { boot_id, ..self }
    }

    /// Reads the value of a lease key. `BackendData` of another backend is not an error.
    ///
    /// # Errors
    /// When the value is not a JSON object or a key of the contract has the wrong type.
    pub fn from_json(value: &[u8]) -> Result<Self, LeaseError> {
        Self::as_written(value).map_or_else(|| Self::as_any_json(value), Ok)
    }

    /// Reads the bytes that [`LeaseAttrs::to_json`] and the Go daemon write for VXLAN. A start reads thousands of them, and a JSON
    /// reader takes six times as long; what differs in a single byte is left to that.
    fn as_written(value: &[u8]) -> Option<Self> {
        let rest = str::from_utf8(value).ok()?.strip_prefix(r#"{"PublicIP":""#)?;
        let (public_ip, rest) = rest.split_once('"')?;
        let rest = rest.strip_prefix(r#","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":"#)?;
        let (vni, rest) = rest.split_once(',')?;
        let (mac, rest) = rest.strip_prefix(r#""VtepMAC":""#)?.split_once('"')?;
        let rest = rest.strip_prefix('}')?;
        let (node_id, rest) = written_id(rest, r#","NodeID":""#)?;
        let (boot_id, rest) = written_id(rest, r#","BootID":""#)?;
        // A number of JSON has no sign and no zero in front.
        let is_number = vni == "0" || (vni.starts_with(|first: char| first.is_ascii_digit() && first != '0'));
        let data = VxlanData { vni: vni.parse().ok().filter(|_| is_number)?, mac: mac.parse().ok()? };
        let attrs = Self::vxlan(public_ip.parse().ok()?, data, node_id.map(NodeId));
        (rest == "}").then(|| attrs.since_boot(boot_id.map(BootId)))
    }

    fn as_any_json(value: &[u8]) -> Result<Self, LeaseError> {
        let object: FoldedObject =
            serde_json::from_slice(value).map_err(|error| LeaseError::Value(error.to_string()))?;
        let public_ip = match object.text("PublicIP").map_err(LeaseError::Value)? {
            None if object.is_null("PublicIP") => return Err(LeaseError::Value("PublicIP: null".to_owned())),
            None => Ipv4Addr::UNSPECIFIED,
            Some(text) => text.parse().map_err(|error| LeaseError::Value(format!("PublicIP: {error}")))?,
        };
        let backend_type = object.text("BackendType").map_err(LeaseError::Value)?.unwrap_or_default();
        let ours = backend_type == BACKEND_VXLAN;
        let id = |key| object.text(key).ok()??.parse::<NodeId>().ok();
        Ok(Self {
            public_ip,
            vxlan: ours.then(|| vxlan_data(&object.get("BackendData").ok()??)).flatten(),
            node_id: id("NodeID"),
            boot_id: id("BootID").map(|NodeId(digits)| BootId(digits)),
            backend_type: backend_type.into_owned(),
        })
    }

    /// The compact JSON, keys in the Go daemon's order, then `NodeID` and `BootID`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let data = self.vxlan.map(|data| WrittenData { vni: data.vni, mac: data.mac.to_string() });
        let written = Written {
            public_ip: self.public_ip,
            public_ipv6: None,
            backend_type: &self.backend_type,
            backend_data: data,
            node_id: self.node_id.map(|id| id.to_string()),
            boot_id: self.boot_id.map(|id| id.to_string()),
        };
        serde_json::to_string(&written).unwrap_or_default()
    }
}

/// What follows `key`, if that is an id; else there must be none.
fn written_id<'a>(text: &'a str, key: &str) -> Option<(Option<u64>, &'a str)> {
    let Some(found) = text.strip_prefix(key) else { return Some((None, text)) };
    let (digits, rest) = found.split_once('"')?;
    let NodeId(id) = digits.parse().ok()?;
    Some((Some(id), rest))
}

fn vxlan_data(data: &FoldedObject<'_>) -> Option<VxlanData> {
    let vni = data.get("VNI").ok()?.unwrap_or(0);
    let mac = data.text("VtepMAC").ok()??;
    Some(VxlanData { vni, mac: mac.parse().ok()? })
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<()>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<WrittenData>,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    #[serde(rename = "BootID", skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

#[derive(Serialize)]
struct WrittenData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GO: &str = r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:3b:6e:23:53:7b"}}"#;

    #[test]
    fn what_the_go_daemon_writes_is_read_and_written_back_byte_for_byte() {
        let attrs = LeaseAttrs::from_json(GO.as_bytes()).unwrap();
        assert_eq!(attrs.public_ip, Ipv4Addr::new(10, 99, 0, 11));
        assert_eq!(attrs.vxlan.unwrap().mac.to_string(), "12:3b:6e:23:53:7b");
        assert_eq!(attrs.to_json(), GO);
    }

    #[test]
    fn keys_are_read_in_any_case_and_unknown_ones_are_ignored() {
        let folded = r#"{"publicip":"10.99.0.11","BACKENDTYPE":"vxlan","backendDATA":{"vni":1,"vtepmac":"12:3B:6E:23:53:7B"},"x":[1]}"#;
        assert_eq!(LeaseAttrs::from_json(folded.as_bytes()), LeaseAttrs::from_json(GO.as_bytes()));
    }

    #[test]
    fn the_quick_reader_says_what_the_whole_one_says_or_nothing() {
        let ours = GO.replace("}}", r#"},"NodeID":"00000000000000aa","BootID":"00000000000000bb"}"#);
        let node = GO.replace("}}", r#"},"NodeID":"00000000000000aa"}"#);
        for text in [GO, &ours, &node] {
            let quick = LeaseAttrs::as_written(text.as_bytes());
            assert_eq!(quick.map(Ok), Some(LeaseAttrs::as_any_json(text.as_bytes())), "{text}");
        }
        for (position, _) in ours.char_indices() {
            for other in ["", "0", "9", "-", "\"", "\\", " ", ",", "}", "\u{0}", "ü"] {
                let (before, after) = ours.split_at(position);
                for text in
                    [format!("{before}{other}{after}"), format!("{before}{other}{}", after.get(1..).unwrap())]
                {
                    let quick = LeaseAttrs::as_written(text.as_bytes()).map(Ok);
                    assert!(
                        quick.is_none() || quick == Some(LeaseAttrs::as_any_json(text.as_bytes())),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_public_ip_may_be_missing_but_not_wrong() {
        assert_eq!(LeaseAttrs::from_json(b"{}").unwrap().public_ip, Ipv4Addr::UNSPECIFIED);
        for value in
            [r#"{"PublicIP":null}"#, r#"{"PublicIP":"x"}"#, r#"{"PublicIP":1}"#, "[]", "", "null", "1"]
        {
            assert!(LeaseAttrs::from_json(value.as_bytes()).is_err(), "{value}");
        }
    }

    #[test]
    fn another_backend_is_a_lease_without_vxlan_data() {
        let attrs = LeaseAttrs::from_json(br#"{"PublicIP":"10.0.0.1","BackendType":"host-gw"}"#).unwrap();
        assert_eq!((attrs.backend_type.as_str(), attrs.vxlan), ("host-gw", None));
    }

    #[test]
    fn keys_with_host_bits_or_of_two_families_are_refused() {
        assert_eq!(parse_key("10.200.88.0-24").unwrap(), "10.200.88.0/24".parse().unwrap());
        for name in [
            "",
            "config",
            "10.200.88.1-24",
            "10.200.88.0-32",
            "10.200.88.0/24",
            "10.200.88.0-024",
            "10.0.0.0-08",
            "10.0.0.0-",
            "10.200.88.0-+4",
            "010.200.88.0-24",
            "10.200.13.0-24&fd00:10:200:1a::-64",
        ] {
            assert!(parse_key(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_machine_id_itself_is_not_published() {
        let id = NodeId::from_machine_id("0123456789abcdef0123456789abcdef\n");
        assert_eq!(id, NodeId::from_machine_id("0123456789abcdef0123456789abcdef"));
        assert_ne!(id, NodeId::from_machine_id("0123456789abcdef0123456789abcdee"));
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
    }

    proptest! {
        #[test]
        fn keys_round_trip(address: u32, length in 0_u8..=31) {
            let subnet = Ipv4Network::new(address.into(), length).unwrap();
            let subnet = Ipv4Network::new(subnet.network(), length).unwrap();
            prop_assert_eq!(parse_key(&key_of(subnet)).unwrap(), subnet);
        }

        #[test]
        fn values_round_trip(ip: u32, vni: u32, mac: [u8; 6], id: Option<u64>, boot: Option<u64>) {
            let data = VxlanData { vni, mac: MacAddr::new(mac) };
            let attrs = LeaseAttrs::vxlan(ip.into(), data, id.map(NodeId)).since_boot(boot.map(BootId));
            prop_assert_eq!(LeaseAttrs::from_json(attrs.to_json().as_bytes()).unwrap(), attrs);
        }

        #[test]
        fn nothing_makes_the_readers_panic(key in ".*", value: Vec<u8>) {
            let _ = parse_key(&key);
            let _ = LeaseAttrs::from_json(&value);
        }
    }
}
