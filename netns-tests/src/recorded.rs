//! The recorded state of nodes that ran the Go daemon (`fixtures/go-state`): reading it, and laying it into a node's
//! kernel as the Go daemon had left it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::etcd::{Api, KeyValue};
use crate::flanneld::SUBNET_FILE;
use crate::lab::{Lab, Spec};
use crate::lease::Lease;
use crate::node::Node;
use crate::observe::{difference, sorted};
use crate::underlay::Underlay;

/// Attributes that depend on the kernel and on iproute2, not on the daemon (README of the recordings).
const NOT_THE_DAEMONS: [&str; 9] = [
    "ifindex",
    "allmulti",
    "df",
    "gso_max_size",
    "gso_max_segs",
    "tso_max_size",
    "tso_max_segs",
    "gro_max_size",
    "gso_ipv4_max_size",
];

/// One recorded phase of one version.
#[derive(Debug, Clone)]
pub struct Recorded {
    folder: PathBuf,
    meta: Value,
}

impl Recorded {
    /// Opens e.g. `v0.28.9` or `v0.28.9/direct-routing`.
    ///
    /// # Errors
    /// When there is no such recording.
    pub fn open(name: &str) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/go-state").join(name);
        let meta = fs::read_to_string(folder.join("meta.json")).context("meta.json of a recording")?;
        Ok(Self { meta: serde_json::from_str(&meta)?, folder })
    }

    /// A lab with one node like the recorded one: `wg0` with MTU 1420 (a veth end), the same network config, and the store
    /// that the recorded version uses.
    ///
    /// # Errors
    /// When the recording names no network config.
    pub fn spec(&self) -> Result<Spec> {
        let network_config = self.meta_text("/network_config")?.to_owned();
        let underlay = Underlay::Veth { device: "wg0".to_owned(), mtu: 1420 };
        let etcd_api = if self.text("etcd.json")?.contains("/v2/keys/") { Api::V2 } else { Api::V3 };
        Ok(Spec { nodes: 1, underlay, network_config, etcd_api, ..Spec::default() })
    }

    /// What stands in a file of the phase `running`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn text(&self, file: &str) -> Result<String> {
        let path = self.folder.join("running").join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// When it is missing or no JSON.
    pub fn json(&self, file: &str) -> Result<Value> {
        serde_json::from_str(&self.text(file)?).with_context(|| format!("the recorded {file}"))
    }

    fn meta_text(&self, pointer: &str) -> Result<&str> {
        let text = self.meta.pointer(pointer).and_then(Value::as_str);
        text.with_context(|| format!("meta.json has no {pointer}"))
    }

    /// The recorded device's name: the VXLAN id stands in it.
    ///
    /// # Errors
    /// When it was not recorded.
    pub fn device(&self) -> Result<String> {
        let links = self.json("link.json")?;
        Ok(links.pointer("/0/ifname").and_then(Value::as_str).context("a device's name")?.to_owned())
    }

    /// Writes the recorded leases into etcd, the node's own included, each with a time to live of a day.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put_leases(&self, lab: &Lab) -> Result<()> {
        for Lease { stored, .. } in self.leases()? {
            lab.etcd().put_leased(&stored.key, &stored.value, 86_400)?;
        }
        Ok(())
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        collect_leases(&self.json("etcd.json")?, &mut leases);
        let lease = |(key, value)| Lease::parse(KeyValue { key, value, ..KeyValue::default() });
        leases.into_iter().map(lease).collect()
    }

    /// Makes the node's kernel and `subnet.env` what they were on the recorded node.
    ///
    /// # Errors
    /// When a command fails.
    pub fn install(&self, node: &Node) -> Result<()> {
        self.install_device(node)?;
        let device = self.device()?;
        for entry in sorted(&self.json("neigh.json")?) {
            if field(&entry, "/state/0")? == "PERMANENT" {
                let (dst, lladdr) = (field(&entry, "/dst")?, field(&entry, "/lladdr")?);
                node.run(&format!("ip neigh add {dst} lladdr {lladdr} dev {device} nud permanent"))?;
            }
        }
        for entry in sorted(&self.json("fdb.json")?) {
            let (mac, dst) = (field(&entry, "/mac")?, field(&entry, "/dst")?);
            node.run(&format!("bridge fdb add {mac} dev {device} dst {dst} self permanent"))?;
        }
        for entry in sorted(&self.json("routes.json")?) {
            let (dst, gateway) = (field(&entry, "/dst")?, field(&entry, "/gateway")?);
            node.run(&format!("ip route add {dst} via {gateway} dev {device} onlink"))?;
        }
        self.install_direct_routes(node, &device)?;
        node.write(SUBNET_FILE, &self.text("subnet.env")?)
    }

    /// The routes of direct routing, which lead through the underlay's device.
    fn install_direct_routes(&self, node: &Node, device: &str) -> Result<()> {
        let Ok(routes) = self.text("routes.txt") else { return Ok(()) };
        for line in routes.lines().filter(|line| line.contains(" via ") && !line.contains(device)) {
            let route = line.split(" proto ").next().unwrap_or_default();
            node.run(&format!("ip route add {route} proto boot"))?;
        }
        Ok(())
    }

    fn install_device(&self, node: &Node) -> Result<()> {
        let links = self.json("link.json")?;
        let local = field(&links, "/0/linkinfo/info_data/local")?;
        let device = self.make_device(node, &field(&links, "/0/address")?, &local)?;
        let addresses = self.json("addr.json")?;
        for address in addresses.pointer("/0/addr_info").into_iter().flat_map(sorted) {
            if field(&address, "/family")? == "inet" {
                let local = field(&address, "/local")?;
                let broadcast = field(&address, "/broadcast").map(|to| format!("broadcast {to}"));
                let broadcast = broadcast.unwrap_or_default();
                node.run(&format!("ip address add {local}/32 {broadcast} dev {device}"))?;
            }
        }
        node.run(&format!("ip link set {device} up")).map(drop)
    }

    /// Makes the recorded device, with another MAC and outer address.
    fn make_device(&self, node: &Node, mac: &str, local: &str) -> Result<String> {
        let links = self.json("link.json")?;
        let link = |pointer: &str| field(&links, &format!("/0{pointer}"));
        let (device, mtu) = (link("/ifname")?, link("/mtu")?);
        let vxlan = |name: &str| link(&format!("/linkinfo/info_data/{name}"));
        let (id, parent, port) = (vxlan("id")?, vxlan("link")?, vxlan("port")?);
        node.run(&format!(
            "ip link add {device} address {mac} mtu {mtu} txqueuelen 0 type vxlan id {id} dev {parent} \
             local {local} dstport {port} nolearning"
        ))?;
        // A dot in the name would be taken for a separator in sysctl's usual notation.
        node.run(&format!("sysctl -qw net/ipv6/conf/{device}/accept_ra=0"))?;
        Ok(device)
    }

    /// Makes the kernel and `subnet.env` of another node of the recorded cluster what they must have been: only one was
    /// recorded, and the leases say the rest.
    ///
    /// # Errors
    /// When there is no such node or a command fails.
    pub fn install_other(&self, node: &Node, public_ip: Ipv4Addr) -> Result<()> {
        let (own, others): (Vec<Lease>, Vec<Lease>) =
            self.leases()?.into_iter().partition(|lease| lease.public_ip == public_ip);
        let own = own.first().context("no recorded lease with this public IP")?;
        let device = self.make_device(node, &own.vtep_mac, &public_ip.to_string())?;
        node.run(&format!("ip address add {}/32 dev {device}", own.network()))?;
        node.run(&format!("ip link set {device} up"))?;
        for Lease { subnet, public_ip, vtep_mac, .. } in &others {
            let gateway = subnet.split('/').next().unwrap_or_default();
            node.run(&format!("ip neigh add {gateway} lladdr {vtep_mac} dev {device} nud permanent"))?;
            node.run(&format!("bridge fdb add {vtep_mac} dev {device} dst {public_ip} self permanent"))?;
            node.run(&format!("ip route add {subnet} via {gateway} dev {device} onlink"))?;
        }
        let [a, b, c, _] = own.network().octets();
        let subnet = format!("FLANNEL_SUBNET={a}.{b}.{c}.1/24");
        let recorded = self.text("subnet.env")?;
        let file = recorded.lines().map(|line| match line.starts_with("FLANNEL_SUBNET=") {
            true => format!("{subnet}\n"),
            false => format!("{line}\n"),
        });
        node.write(SUBNET_FILE, &file.collect::<String>())
    }

    /// Gives a node the recorded firewall rules, for the subnet its `subnet.env` names.
    ///
    /// # Errors
    /// When `iptables-restore` refuses them.
    pub fn install_rules(&self, node: &Node) -> Result<()> {
        let subnet = |file: &str| {
            let line = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
            line.map(|line| line.replace(".1/", ".0/")).context("subnet.env names no subnet")
        };
        let (recorded, own) = (subnet(&self.text("subnet.env")?)?, subnet(&node.read(SUBNET_FILE)?)?);
        let path = node.folder().join("rules");
        fs::write(&path, self.text("iptables-nft.save")?.replace(&recorded, &own))?;
        node.run(&format!("iptables-nft-restore {}", path.display())).map(drop)
    }
}

/// A text or number of a JSON value, as text.
fn field(value: &Value, pointer: &str) -> Result<String> {
    match value.pointer(pointer) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => anyhow::bail!("no {pointer} in {value}"),
    }
}

/// Every object with a `key` below `subnets/`, whichever etcd API it was recorded from.
fn collect_leases(value: &Value, leases: &mut Vec<(String, String)>) {
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| collect_leases(element, leases)),
        Value::Object(object) => {
            let text = |name: &str| object.get(name).and_then(Value::as_str);
            match (text("key"), text("value")) {
                (Some(key), Some(value)) if key.contains("/subnets/") => {
                    leases.push((key.to_owned(), value.to_owned()));
                }
                _ => object.values().for_each(|value| collect_leases(value, leases)),
            }
        }
        _ => {}
    }
}

/// A link or address list without what depends on the kernel and on iproute2.
#[must_use]
pub fn without_kernel_details(value: &Value) -> Value {
    match value {
        Value::Array(elements) => Value::Array(elements.iter().map(without_kernel_details).collect()),
        Value::Object(object) => {
            let kept = object.iter().filter(|(name, _)| !NOT_THE_DAEMONS.contains(&name.as_str()));
            Value::Object(Map::from_iter(
                kept.map(|(name, value)| (name.clone(), without_kernel_details(value))),
            ))
        }
        other => other.clone(),
    }
}

/// Everything the daemon decides about its device, in the form it was recorded: link, addresses, routes, permanent
/// neighbours, FDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// `ip -d -j link show DEV`
    pub link: Value,
    /// `ip -j addr show dev DEV`
    pub addresses: Value,
    /// `ip -j route show dev DEV`
    pub routes: Vec<Value>,
    /// `ip -j neigh show dev DEV nud all`, the permanent ones
    pub neighbours: Vec<Value>,
    /// `bridge -j fdb show dev DEV`
    pub fdb: Vec<Value>,
}

impl DeviceState {
    /// Reads a node.
    ///
    /// # Errors
    /// When the device does not exist.
    pub fn observe(node: &Node, device: &str) -> Result<Self> {
        let json = |line: &str| node.json(&format!("{line} {device}"));
        Ok(Self::new(
            &json("ip -d -j link show")?,
            &json("ip -j addr show dev")?,
            &json("ip -j route show dev")?,
            &json("ip -j neigh show nud all dev")?,
            &json("bridge -j fdb show dev")?,
        ))
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// When a file is missing.
    pub fn recorded(recorded: &Recorded) -> Result<Self> {
        let json = |file: &str| recorded.json(file);
        Ok(Self::new(
            &json("link.json")?,
            &json("addr.json")?,
            &json("routes.json")?,
            &json("neigh.json")?,
            &json("fdb.json")?,
        ))
    }

    /// Fails with what is too much and what is missing when this is not as expected.
    ///
    /// # Errors
    /// When it differs.
    pub fn ensure_equals(&self, expected: &Self) -> Result<()> {
        let one = |value: &Value| vec![value.clone()];
        let differences: Vec<String> = [
            difference("link", &one(&self.link), &one(&expected.link)),
            difference("address", &one(&self.addresses), &one(&expected.addresses)),
            difference("route", &self.routes, &expected.routes),
            difference("neighbour", &self.neighbours, &expected.neighbours),
            difference("FDB entry", &self.fdb, &expected.fdb),
        ]
        .concat();
        ensure!(differences.is_empty(), "the device differs:\n{}", differences.join("\n"));
        Ok(())
    }

    fn new(link: &Value, addresses: &Value, routes: &Value, neighbours: &Value, fdb: &Value) -> Self {
        let permanent = |entry: &Value| field(entry, "/state/0").is_ok_and(|state| state == "PERMANENT");
        Self {
            link: without_kernel_details(link),
            addresses: without_kernel_details(addresses),
            routes: sorted(routes),
            neighbours: sorted(neighbours).into_iter().filter(permanent).collect(),
            fdb: sorted(fdb),
        }
    }
}
