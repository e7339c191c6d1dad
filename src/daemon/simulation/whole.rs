//! What every node's kernel must hold, worked out from the store's text alone: nothing of the daemon's own model is used, so that
//! an error in it cannot excuse itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;

use crate::model::MacAddr;
use crate::model::state::{Entries, FdbTarget, Observed, Route, RouteDevice};
use crate::store::Memory;

/// Where the leases stand.
pub(super) const SUBNETS: &str = "/sim/subnets/";

/// A lease that a node must use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) public_ip: Ipv4Addr,
    mac: MacAddr,
}

/// All valid leases, by the third byte of their subnet `10.200.N.0/24`.
pub(super) fn valid(memory: &Memory) -> BTreeMap<u8, Lease> {
    let content = memory.content();
    let leases = (0..=255_u8).filter_map(|number| {
        let record = content.get(&format!("{SUBNETS}10.200.{number}.0-24"))?;
        Some((number, lease(&serde_json::from_slice(&record.value).ok()?)?))
    });
    leases.collect()
}

fn lease(value: &Value) -> Option<Lease> {
    let public_ip: Ipv4Addr = value["PublicIP"].as_str()?.parse().ok()?;
    let mac = value["BackendData"]["VtepMAC"].as_str()?.parse().ok()?;
    let ours = value["BackendType"] == "vxlan" && value["BackendData"]["VNI"] == 1;
    let loops = public_ip.octets()[..2] == [10, 200];
    (ours && !loops).then_some(Lease { public_ip, mac })
}

/// The entries of the node that holds subnet `own`.
fn entries(leases: &BTreeMap<u8, Lease>, own: u8) -> Entries {
    let mut entries = Entries::default();
    for (&number, lease) in leases.iter().filter(|(number, _)| **number != own) {
        let first = Ipv4Addr::new(10, 200, number, 0);
        entries.neighbors.insert(first, lease.mac);
        entries.fdb.insert(lease.mac, FdbTarget { dst: lease.public_ip, plain: true });
        entries.routes.insert(Route {
            dst: format!("{first}/24").parse().unwrap(),
            metric: 0,
            device: RouteDevice::Vtep,
            gateway: Some(first),
            onlink: true,
            protocol: 3,
            plain: true,
        });
    }
    entries
}

/// What is wrong with the node at `public_ip`, whose kernel holds `found`.
pub(super) fn problem(
    leases: &BTreeMap<u8, Lease>,
    public_ip: Ipv4Addr,
    found: &Observed,
) -> Result<u8, String> {
    let own: Vec<_> = leases.iter().filter(|(_, lease)| lease.public_ip == public_ip).collect();
    let &[(&number, lease)] = own.as_slice() else { return Err(format!("leases: {own:?}")) };
    let device = found.vtep.as_ref().ok_or("no device")?;
    let address = format!("10.200.{number}.0/32").parse().unwrap();
    let local = device.vxlan.as_ref().and_then(|vxlan| vxlan.local);
    let right = device.up && device.mac == lease.mac && device.mtu == 1370 && local == Some(public_ip);
    if !right || device.addresses != [address] {
        return Err(format!("device of the holder of {number}, {lease:?}: {device:?}"));
    }
    differences(&entries(leases, number), &found.entries).map_or(Ok(number), Err)
}

fn differences(wanted: &Entries, found: &Entries) -> Option<String> {
    let neighbors = (wanted.neighbors != found.neighbors)
        .then(|| format!("neighbours {:?}, wanted {:?}", found.neighbors, wanted.neighbors));
    let fdb = (wanted.fdb != found.fdb).then(|| format!("FDB {:?}, wanted {:?}", found.fdb, wanted.fdb));
    let missing: Vec<_> = wanted.routes.difference(&found.routes).map(|route| route.dst).collect();
    let extra: Vec<_> = found.routes.difference(&wanted.routes).collect();
    let routes = (!missing.is_empty() || !extra.is_empty())
        .then(|| format!("routes missing {missing:?}, too many {extra:?}"));
    neighbors.or(fdb).or(routes)
}
