//! What the daemon knows about itself, as one value that it publishes and everybody else only reads.
//!
//! All points in time are readings of `CLOCK_BOOTTIME`, passed in as `now`. What changes with every kernel operation is not
//! here but in [`Metrics`](crate::metrics::Metrics), so that publishing stays rare.

pub mod answer;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use crate::model::state::Vtep;
use crate::model::{IfName, MacAddr, Mtu};

/// The daemon's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// The lease on this node's subnet.
    pub lease: Option<OwnLease>,
    /// The interface that carries the traffic between nodes.
    pub external: Option<External>,
    /// MTU of the tunnel.
    pub mtu: Option<Mtu>,
    /// The other nodes.
    pub peers: Peers,
    /// How many keys in the store are skipped now, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The store.
    pub store: Store,
    /// `subnet.env` says what it should.
    pub subnet_env_written: bool,
    /// Every peer of the first list was tried once.
    pub first_list_tried: bool,
    /// The device as it should be, once that is known.
    pub device: Option<Device>,
    /// The firewall's rules as last looked at.
    pub rules: Option<Rules>,
    /// What was put right lately, the newest last; see [`Status::repaired`].
    pub repairs: VecDeque<Repair>,
}

/// The device as it should be, and what belongs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its attributes.
    pub vtep: Vtep,
    /// Its address.
    pub address: Ipv4Addr,
    /// The overlay network.
    pub network: Ipv4Network,
}

/// The firewall's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where they are and why there, as soon as that is decided.
    pub firewall: Option<String>,
    /// Why they are not in force, or what failed beside them.
    pub problem: Option<String>,
    /// They are in force.
    pub in_force: bool,
    /// What drops pods' packets in spite of them.
    pub obstacles: Vec<Obstacle>,
}

/// Something that drops what our rules accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What, in words.
    pub problem: String,
    /// What to do.
    pub cure: String,
}

/// Something that somebody else had changed and that was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// When, the last time if it was several.
    pub at: Duration,
    /// What, as the metric `flanneld_repairs_total` labels it.
    pub what: &'static str,
    /// How many of them.
    pub count: u64,
}

/// How many repairs are remembered.
const REPAIRS: usize = 16;
/// Repairs of one kind that follow each other this closely are one.
const SAME_REPAIR: Duration = Duration::from_secs(1);

impl Status {
    /// Remembers a repair. `false`: there was none.
    pub fn repaired(&mut self, what: &'static str, count: u64, now: Duration) -> bool {
        if count == 0 {
            return false;
        }
        let last = self.repairs.iter_mut().rev().find(|repair| repair.what == what);
        if let Some(last) = last.filter(|last| now.saturating_sub(last.at) <= SAME_REPAIR) {
            *last = Repair { at: now, what, count: last.count.saturating_add(count) };
            return true;
        }
        if self.repairs.len() == REPAIRS {
            self.repairs.pop_front();
        }
        self.repairs.push_back(Repair { at: now, what, count });
        true
    }
}

/// One other node, as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Where encapsulated packets go.
    pub public_ip: Ipv4Addr,
    /// The hardware address of its device.
    pub mac: MacAddr,
    /// It is reached without the tunnel.
    pub direct: bool,
    /// Why it cannot be reached, in words.
    pub problem: Option<String>,
}

/// How far the daemon is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was tried yet.
    #[default]
    Starting,
    /// The network config is not there or not readable.
    WaitingForConfig {
        /// Why, in words.
        reason: String,
    },
    /// Looking for the external interface.
    ChoosingInterface,
    /// Taking a lease.
    AcquiringLease,
    /// Making the kernel hold what it should, for the first time.
    Programming,
    /// Following changes.
    Running,
    /// Told to stop.
    Stopping,
}

/// The lease on this node's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLease {
    /// The subnet.
    pub subnet: Ipv4Network,
    /// Where the other nodes send.
    pub public_ip: Ipv4Addr,
    /// The VTEP's hardware address.
    pub mac: MacAddr,
    /// When it was taken or last renewed.
    pub renewed: Duration,
    /// When it ends unless it is renewed; `None` for a reservation.
    pub expires: Option<Duration>,
}

impl OwnLease {
    /// Whether it ended without having been renewed: the node is no longer the owner.
    #[must_use]
    pub fn is_expired(&self, now: Duration) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// The interface that carries the traffic between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name.
    pub name: IfName,
    /// The address on it that is used.
    pub address: Ipv4Addr,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The other nodes, as the kernel holds them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peers {
    /// The kernel holds everything that belongs to them.
    pub programmed: u64,
    /// The kernel refused something that belongs to them.
    pub failed: u64,
}

impl Peers {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.programmed.saturating_add(self.failed)
    }
}

/// The store as last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    /// Which API and endpoints, without secrets.
    pub describe: String,
    /// Whether it answers.
    pub link: Link,
    /// The newest revision that was seen; 0 before the first.
    pub revision: u64,
    /// How often the watch had to be opened again.
    pub watch_restarts: u64,
}

/// Whether the store answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Link {
    /// Not asked yet.
    #[default]
    Untried,
    /// It answers.
    Up {
        /// Since when.
        since: Duration,
    },
    /// It does not.
    Down {
        /// Since when.
        since: Duration,
        /// The last reason, in words.
        error: String,
    },
}

/// Whether pods can rely on the node: the file is written, every peer of the first list was tried, and the lease is ours. May
/// become false again.
#[must_use]
pub fn ready(status: &Status, now: Duration) -> bool {
    let owned = status.lease.as_ref().is_some_and(|lease| !lease.is_expired(now));
    status.phase == Phase::Running && owned && status.subnet_env_written && status.first_list_tried
}

/// One line for `systemctl status`.
#[must_use]
pub fn status_line(status: &Status, now: Duration) -> String {
    match &status.phase {
        Phase::Starting => "starting".to_owned(),
        Phase::WaitingForConfig { reason } => format!("waiting for the network config: {reason}"),
        Phase::ChoosingInterface => "choosing the external interface".to_owned(),
        Phase::AcquiringLease => "acquiring a lease".to_owned(),
        Phase::Programming => format!("{}, programming its peers", node(status)),
        Phase::Running => {
            let mut parts = vec![node(status), peers(status.peers)];
            parts.extend(troubles(status, now));
            parts.join("; ")
        }
        Phase::Stopping => "stopping; traffic goes on".to_owned(),
    }
}

/// `10.200.88.0/24 over wg0 (10.8.0.111)`
fn node(status: &Status) -> String {
    let subnet =
        status.lease.as_ref().map_or_else(|| "no subnet".to_owned(), |lease| lease.subnet.to_string());
    match &status.external {
        Some(external) => format!("{subnet} over {} ({})", external.name, external.address),
        None => subnet,
    }
}

fn peers(peers: Peers) -> String {
    match (peers.total(), peers.failed) {
        (total, 0) => format!("peers: {total}"),
        (total, failed) => {
            format!("peers: {total}, of which {failed} cannot be reached as the kernel refused them")
        }
    }
}

fn troubles(status: &Status, now: Duration) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.lease.as_ref().is_some_and(|lease| lease.is_expired(now)) {
        troubles.push("the lease has expired".to_owned());
    }
    if !status.subnet_env_written {
        troubles.push("subnet.env cannot be written".to_owned());
    }
    if let Link::Down { since, error } = &status.store.link {
        troubles.push(format!("the store is down for {} s: {error}", now.saturating_sub(*since).as_secs()));
    }
    let skipped: u64 = status.skipped.values().sum();
    if skipped > 0 {
        troubles.push(format!("skipped keys: {skipped}"));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Status {
        Status {
            phase: Phase::Running,
            lease: Some(OwnLease {
                subnet: "10.200.88.0/24".parse().unwrap(),
                public_ip: Ipv4Addr::new(10, 8, 0, 111),
                mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
                renewed: Duration::from_secs(100),
                expires: Some(Duration::from_secs(86_500)),
            }),
            external: Some(External {
                name: "wg0".parse().unwrap(),
                address: Ipv4Addr::new(10, 8, 0, 111),
                mtu: 1420,
            }),
            mtu: Some(Mtu::try_from(1370).unwrap()),
            peers: Peers { programmed: 3, failed: 0 },
            skipped: BTreeMap::new(),
            store: Store { link: Link::Up { since: Duration::from_secs(90) }, ..Store::default() },
            subnet_env_written: true,
            first_list_tried: true,
            ..Status::default()
        }
    }

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_node_is_ready_while_everything_holds() {
        assert!(ready(&running(), NOW));
        let reservation = OwnLease { expires: None, ..running().lease.unwrap() };
        assert!(ready(&Status { lease: Some(reservation), ..running() }, Duration::MAX));
    }

    #[test]
    fn any_single_thing_missing_makes_it_not_ready() {
        for (missing, now) in [
            (Status { phase: Phase::Programming, ..running() }, NOW),
            (Status { phase: Phase::Stopping, ..running() }, NOW),
            (Status { lease: None, ..running() }, NOW),
            (Status { subnet_env_written: false, ..running() }, NOW),
            (Status { first_list_tried: false, ..running() }, NOW),
            (running(), Duration::from_secs(86_500)),
            (Status::default(), NOW),
        ] {
            assert!(!ready(&missing, now), "{missing:?}");
        }
    }

    #[test]
    fn a_store_that_is_down_does_not_make_it_unready() {
        let down = Link::Down { since: NOW, error: "x".to_owned() };
        assert!(ready(&Status { store: Store { link: down, ..Store::default() }, ..running() }, NOW));
    }

    #[test]
    fn repairs_that_follow_each_other_closely_are_one_and_old_ones_are_forgotten() {
        let mut status = Status::default();
        let at = Duration::from_millis;
        for (what, count, now) in
            [("route", 2, 0), ("fdb", 1, 100), ("route", 1, 900), ("route", 0, 5000), ("route", 4, 6000)]
        {
            assert_eq!(status.repaired(what, count, at(now)), count > 0);
        }
        let expected = [("route", 3, 900), ("fdb", 1, 100), ("route", 4, 6000)];
        let expected = expected.map(|(what, count, now)| Repair { at: at(now), what, count });
        assert_eq!(status.repairs, expected);
        for second in 0..40 {
            status.repaired("lease", 1, Duration::from_secs(100 + 2 * second));
        }
        assert_eq!(status.repairs.len(), REPAIRS);
        assert_eq!(status.repairs.back().unwrap().at, Duration::from_secs(178));
    }

    #[test]
    fn the_status_line_in_every_phase() {
        let reason = "no key /coreos.com/network/config".to_owned();
        for (phase, line) in [
            (Phase::Starting, "starting"),
            (
                Phase::WaitingForConfig { reason },
                "waiting for the network config: no key /coreos.com/network/config",
            ),
            (Phase::ChoosingInterface, "choosing the external interface"),
            (Phase::AcquiringLease, "acquiring a lease"),
            (Phase::Programming, "10.200.88.0/24 over wg0 (10.8.0.111), programming its peers"),
            (Phase::Running, "10.200.88.0/24 over wg0 (10.8.0.111); peers: 3"),
            (Phase::Stopping, "stopping; traffic goes on"),
        ] {
            assert_eq!(status_line(&Status { phase, ..running() }, NOW), line);
        }
    }

    #[test]
    fn the_status_line_names_every_trouble() {
        let link = Link::Down { since: Duration::from_secs(86_488), error: "connection refused".to_owned() };
        let troubled = Status {
            peers: Peers { programmed: 2, failed: 1 },
            skipped: BTreeMap::from([("unreadable value", 2), ("own subnet", 1)]),
            store: Store { link, ..Store::default() },
            subnet_env_written: false,
            ..running()
        };
        assert_eq!(
            status_line(&troubled, Duration::from_secs(86_500)),
            "10.200.88.0/24 over wg0 (10.8.0.111); peers: 3, of which 1 cannot be reached as the kernel refused them; \
             the lease has expired; subnet.env cannot be written; the store is down for 12 s: connection refused; \
             skipped keys: 3"
        );
    }
}
