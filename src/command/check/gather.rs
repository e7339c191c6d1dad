//! Looks at everything that `flanneld check` judges: daemon, store, kernel, files, and the peers by echo requests.
//!
//! Changes nothing, and judges nothing. What cannot be looked at is named and left out.

use std::net::Ipv4Addr;

use super::echo::{self, Probe};
use super::facts::{Bridge, Daemon, Drift, Echo, Facts, Node};
use super::host;
use crate::command::own_lease;
use crate::firewall::checks::KernelSettings;
use crate::firewall::{Firewall, FirewallOptions};
use crate::kernel::{Kernel, KernelError, LinuxKernel, Scope, command_of, command_of_step, route_in_words};
use crate::model::acquire::Decision;
use crate::model::diff::diff;
use crate::model::host::Host;
use crate::model::lease_set::{LeaseSet, Own, RawLease};
use crate::model::state::{Entries, FdbTarget, Observed, Route};
use crate::model::{LeaseAttrs, Mtu, device};
use crate::options::Options;
use crate::status::answer::{Answer, Peer};
use crate::status_socket::AskError;
use crate::subnet_env::{Previous, file};
use crate::{status, store};

/// The kernel's own UDP port for VXLAN (`vxlan_port` in `drivers/net/vxlan/vxlan_core.c`).
const PORT: u16 = 8472;
/// Length of an echo request that any path carries.
const SMALL: usize = 84;

/// This node as it should be.
struct Wanted {
    device: status::Device,
    subnet: ipnetwork::Ipv4Network,
    peers: Vec<Peer>,
}

/// Looks at everything. `asked` is what came of asking the daemon.
///
/// # Errors
/// When not even the kernel can be read.
pub(super) async fn gather(
    options: &Options,
    asked: Result<Answer, AskError>,
    mut kernel: LinuxKernel,
) -> Result<Facts, KernelError> {
    let previous = file::read_previous(&options.subnet_file).unwrap_or_default();
    let (wanted, mut store) = match asked.as_ref().ok().and_then(of_answer) {
        Some(wanted) => (Ok(wanted), None),
        None => of_store(options, &previous, &mut kernel).await,
    };
    if let Ok(answer) = &asked {
        store = answer.store.error.clone().or(store);
    }
    let host = kernel.host()?;
    let mut facts = of_host(&host, &previous);
    facts.store = store;
    facts.daemon = daemon(&asked);
    if let Some(rules) = asked.as_ref().ok().and_then(|answer| answer.rules.as_ref()) {
        let unknown = || "they are not in force".to_owned();
        facts.rules = rules.problem.clone().or_else(|| (!rules.in_force).then(unknown));
    }
    look_at_firewall(options, &mut facts).await;
    match store::clocks(&options.etcd).await {
        Ok(skews) => facts.skews = skews,
        Err(error) => facts.unchecked.push(format!("clocks: {error}")),
    }
    match wanted {
        Ok(wanted) => of_node(options, &wanted, &host, &mut kernel, &mut facts)?,
        Err(why) => facts.node = Err(why),
    }
    Ok(facts)
}

fn daemon(asked: &Result<Answer, AskError>) -> Daemon {
    match asked {
        Ok(answer) if answer.ready => Daemon::Ready,
        Ok(answer) => Daemon::NotReady(answer.summary.clone()),
        Err(AskError::NobodyThere(_)) => Daemon::Absent,
        Err(error @ AskError::Failed { .. }) => Daemon::Silent(error.to_string()),
    }
}

/// `None` while the daemon itself does not know, or when its loop is stuck.
fn of_answer(answer: &Answer) -> Option<Wanted> {
    let device = answer.device.as_ref()?.wanted()?;
    let subnet = answer.lease.as_ref()?.subnet;
    Some(Wanted { device, subnet, peers: answer.peers.clone()? })
}

/// What the store says this node should hold, and why the store did not say.
async fn of_store(
    options: &Options,
    previous: &Previous,
    kernel: &mut LinuxKernel,
) -> (Result<Wanted, String>, Option<String>) {
    let found = match own_lease::find(options, previous, kernel).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let why = format!("there is no network config below {}", options.etcd.prefix);
            return (Err(why.clone()), Some(why));
        }
        Err(why) => return (Err(why.clone()), Some(why)),
    };
    (wanted_by(&found, kernel), None)
}

fn wanted_by(found: &own_lease::Found, kernel: &mut LinuxKernel) -> Result<Wanted, String> {
    let Decision::Adopt(ours) = &found.decision else {
        return Err(format!("no lease has its public IP {}", found.underlay.public_ip));
    };
    let mac = ours.attrs.as_ref().and_then(|attrs: &LeaseAttrs| attrs.vxlan).map(|data| data.mac);
    let mac = mac.ok_or_else(|| format!("its lease of {} names no MAC", ours.subnet))?;
    let vtep = device::wanted(&found.config, &found.underlay, mac);
    let own = Own {
        network: found.config.network,
        subnet: ours.subnet,
        public_ip: found.underlay.public_ip,
        mac,
        vni: vtep.vni,
        underlay: vec![found.underlay.external.address, found.underlay.public_ip],
    };
    let mut leases = LeaseSet::new(own);
    let raw = found.snapshot.records.iter().map(|record| RawLease {
        name: &record.name,
        value: &record.value,
        created: record.created,
        modified: record.modified,
    });
    leases.replace(&raw.collect::<Vec<_>>());
    let mut on_link = |ip: Ipv4Addr| {
        found.config.vxlan.direct_routing
            && kernel.route_to(ip).is_ok_and(|route| route.gateway.is_none() && route.device != vtep.name)
    };
    let peers = leases.peers().map(|(subnet, peer)| Peer {
        subnet,
        public_ip: peer.public_ip,
        vtep_mac: peer.mac,
        direct: on_link(peer.public_ip),
        problem: None,
    });
    let peers = peers.collect();
    let (address, network) = (ours.subnet.network(), found.config.network);
    Ok(Wanted { device: status::Device { vtep, address, network }, subnet: ours.subnet, peers })
}

/// What can be said without knowing what this node should hold.
fn of_host(host: &Host, previous: &Previous) -> Facts {
    Facts {
        daemon: Daemon::Absent,
        store: None,
        node: Err(String::new()),
        drift: Drift::default(),
        underlay_mtu: None,
        bridges: Vec::new(),
        subnet_env: previous.subnet,
        rules: None,
        obstacles: Vec::new(),
        settings: KernelSettings::read(&[]),
        kernel: host.kernel,
        tx_checksum: None,
        managers: Vec::new(),
        neighbours: host::neighbours(host.kernel),
        skews: Vec::new(),
        echoes: Vec::new(),
        unchecked: Vec::new(),
    }
}

async fn look_at_firewall(options: &Options, facts: &mut Facts) {
    let mut firewall = Firewall::new(FirewallOptions {
        preference: options.firewall.preference,
        enable_nftables: false,
        resync: options.firewall.resync,
        lock_wait: FirewallOptions::LOCK_WAIT,
    });
    match firewall.obstacles().await {
        Ok(found) => facts.obstacles = found,
        Err(error) => facts.unchecked.push(format!("forward chains: {error}")),
    }
}

fn of_node(
    options: &Options,
    wanted: &Wanted,
    host: &Host,
    kernel: &mut LinuxKernel,
    facts: &mut Facts,
) -> Result<(), KernelError> {
    let status::Device { vtep, address, network } = &wanted.device;
    let scope = Scope { vtep: vtep.name.clone(), parent: vtep.parent.clone(), network: *network };
    let observed = kernel.observe(&scope)?;
    let port = observed.vtep.as_ref().and_then(|found| found.vxlan.as_ref()).map(|vxlan| vxlan.port);
    facts.node = Ok(Node {
        subnet: wanted.subnet,
        network: *network,
        device: vtep.name.clone(),
        parent: vtep.parent.clone(),
        mtu: vtep.mtu.get(),
        port: vtep.port.or(port).unwrap_or(PORT),
    });
    facts.tx_checksum = observed.vtep.as_ref().and_then(|found| found.tx_checksum);
    let steps = device::steps(vtep, *address, *network, observed.vtep.as_ref());
    facts.drift = drift(&scope, &entries(options, wanted), &observed);
    facts.drift.device = steps.iter().map(|step| command_of_step(&scope, step)).collect();
    facts.settings = KernelSettings::read(&[vtep.name.clone(), vtep.parent.clone()]);
    facts.managers = host::managers(&vtep.name);
    facts.underlay_mtu = host.links.iter().find(|link| link.name == vtep.parent).map(|link| link.mtu);
    let beside = host.links.iter().filter(|link| link.name != vtep.name && link.name != vtep.parent);
    facts.bridges = beside
        .filter_map(|link| {
            let inside = link.addresses.iter().find(|address| network.contains(address.ip))?;
            Some(Bridge { name: link.name.clone(), address: inside.ip, mtu: link.mtu })
        })
        .collect();
    let full = usize::try_from(vtep.mtu.get() + Mtu::VXLAN_OVERHEAD).unwrap_or(SMALL);
    match echoes(&wanted.peers, full) {
        Ok(found) => facts.echoes = found,
        Err(error) => facts.unchecked.push(format!("peers by echo requests: {error} (run as root)")),
    }
    Ok(())
}

/// What the peers take in the kernel; a peer whose route is somebody else's takes it all the same.
fn entries(options: &Options, wanted: &Wanted) -> Entries {
    let mut entries = Entries::default();
    for peer in &wanted.peers {
        if peer.direct {
            entries.routes.insert(Route::direct(peer.subnet, peer.public_ip));
            continue;
        }
        entries.neighbors.insert(peer.subnet.network(), peer.vtep_mac);
        entries.fdb.insert(peer.vtep_mac, FdbTarget { dst: peer.public_ip, plain: true });
        entries.routes.insert(Route::overlay(peer.subnet));
    }
    entries.routes.extend(options.blackhole.then(|| Route::blackhole(wanted.subnet)));
    entries
}

fn drift(scope: &Scope, desired: &Entries, observed: &Observed) -> Drift {
    let plan = diff(desired, &observed.entries);
    let conflicts = plan.conflicts.iter();
    Drift {
        device: Vec::new(),
        entries: plan.operations.iter().map(|operation| command_of(scope, operation)).collect(),
        conflicts: conflicts.map(|(ours, theirs)| (ours.dst, route_in_words(theirs))).collect(),
    }
}

/// Three requests to each peer: through the tunnel, outside of it, and outside of it as large as the tunnel's packets.
fn echoes(peers: &[Peer], full: usize) -> std::io::Result<Vec<Echo>> {
    let probes = peers.iter().flat_map(|peer| {
        let (inside, outside) = (peer.subnet.network(), peer.public_ip);
        [(inside, SMALL), (outside, SMALL), (outside, full)].map(|(to, length)| Probe { to, length })
    });
    let answered = echo::echo(&probes.collect::<Vec<_>>())?;
    let found = peers.iter().zip(answered.chunks(3)).filter_map(|(peer, answered)| {
        let [inside, outside, full_size] = *answered else { return None };
        let Peer { subnet, public_ip, direct, .. } = *peer;
        Some(Echo { subnet, public_ip, inside, outside, full_size, direct })
    });
    Ok(found.collect())
}
