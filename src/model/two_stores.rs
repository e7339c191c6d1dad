//! One network in two stores, etcd v2 and v3, while a cluster moves from one to the other: whose word counts.
//!
//! v2 decides. A lease that stands in either store counts; where the two contradict each other v2's does, and whoever holds the
//! subnet in v3 has to move.

use std::fmt;
use std::net::Ipv4Addr;

use super::lease::parse_key;
use super::{LeaseAttrs, NetworkConfig, NodeId};

/// One of the two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// etcd v2, which decides.
    V2,
    /// etcd v3.
    V3,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

/// No store counts as far as this bit.
const LAST: u64 = 1 << 63;

/// The two stores count their revisions independently. For [`LeaseSet`](super::lease_set::LeaseSet), which compares them, a key
/// of v2 was created before and written after every key of v3: so v2 wins where leases overlap or share a MAC.
impl Origin {
    /// Where the creation of a key stands among those of both stores.
    #[must_use]
    pub fn created(self, revision: u64) -> u64 {
        match self {
            Self::V2 => revision & !LAST,
            Self::V3 => revision | LAST,
        }
    }

    /// Where the last write of a key stands among those of both stores. Names the store as well: see [`Origin::of`].
    #[must_use]
    pub fn modified(self, revision: u64) -> u64 {
        match self {
            Self::V2 => revision | LAST,
            Self::V3 => revision & !LAST,
        }
    }

    /// The inverse of [`Origin::modified`]: which store, and its own revision.
    #[must_use]
    pub fn of(modified: u64) -> (Self, u64) {
        if modified & LAST == 0 { (Self::V3, modified) } else { (Self::V2, modified & !LAST) }
    }
}

/// Who stands in a lease key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A node.
    Node {
        /// Its public IP.
        public_ip: Ipv4Addr,
        /// Its machine; `None` for the Go daemon, which writes none.
        node_id: Option<NodeId>,
    },
    /// Nobody: the value is not a lease.
    Unreadable,
}

impl Holder {
    /// Reads the value of a key.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        LeaseAttrs::from_json(value).map_or(Self::Unreadable, |attrs| Self::from(&attrs))
    }

    /// Whether both are one node: the same machine, or the same public IP where one of them names no machine.
    #[must_use]
    pub fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Node { node_id: Some(id), .. }, Self::Node { node_id: Some(other), .. }) => id == other,
            (Self::Node { public_ip, .. }, Self::Node { public_ip: other, .. }) => public_ip == other,
            _ => false,
        }
    }
}

impl From<&LeaseAttrs> for Holder {
    fn from(attrs: &LeaseAttrs) -> Self {
        Self::Node { public_ip: attrs.public_ip, node_id: attrs.node_id }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { public_ip, node_id: Some(id) } => write!(f, "node {id} with public IP {public_ip}"),
            Self::Node { public_ip, node_id: None } => {
                write!(f, "a Go daemon (it names no machine) with public IP {public_ip}")
            }
            Self::Unreadable => f.write_str("a value that is no lease"),
        }
    }
}

/// The same subnet, held by different nodes in the two stores. The `Display` is what an operator reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// The last part of the key.
    pub name: String,
    /// Who holds it in v2, and keeps it.
    pub v2: Holder,
    /// Who holds it in v3, and has to move.
    pub v3: Holder,
}

impl Collision {
    /// Compares the values of one key in both stores. Keys that name no subnet never collide.
    #[must_use]
    pub fn between(name: &str, v2: &[u8], v3: &[u8]) -> Option<Self> {
        if v2 == v3 || parse_key(name).is_err() {
            return None;
        }
        let (v2, v3) = (Holder::of(v2), Holder::of(v3));
        (!v2.is(v3)).then(|| Self { name: name.to_owned(), v2, v3 })
    }

    /// Whether it ends by itself: a node of ours moves as soon as it follows both stores.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        matches!(self.v3, Holder::Node { node_id: Some(_), .. })
    }
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, v2, v3 } = self;
        write!(
            f,
            "subnets/{name} is held in the v2 store by {v2} and in the v3 store by {v3}. v2 decides: "
        )?;
        f.write_str(match v3 {
            Holder::Node { node_id: Some(_), .. } => {
                "the second node moves to another subnet when it is restarted with etcd-api=both"
            }
            Holder::Node { node_id: None, .. } => {
                "nodes that follow v2 do not reach the second one, and a Go daemon does not move by itself. Stop it, delete \
                 its key in v3 and its subnet.env, and start this daemon there with etcd-api=both"
            }
            Holder::Unreadable => "delete the key in v3",
        })
    }
}

/// What to do with the copy of our own lease in v3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirroring {
    /// Nothing stands there: write it.
    Create,
    /// It stands there as it should: prolong it.
    Keep,
    /// It is ours, but says something else: write it anew.
    Write,
    /// Somebody else stands there, who has to go first: v2 decides, but nothing of another node's is overwritten.
    Wait,
}

/// Decides over what stands in v3 in the key of our subnet: the value, and whether it is a reservation.
///
/// A reservation in v3 satisfies either kind: one that was made there is never turned into a lease that runs out.
#[must_use]
pub fn mirror(own: &LeaseAttrs, reserved: bool, standing: Option<(&[u8], bool)>) -> Mirroring {
    let Some((value, stands_reserved)) = standing else { return Mirroring::Create };
    if !Holder::from(own).is(Holder::of(value)) {
        return Mirroring::Wait;
    }
    let same = LeaseAttrs::from_json(value).is_ok_and(|attrs| attrs == *own);
    if same && (stands_reserved || !reserved) { Mirroring::Keep } else { Mirroring::Write }
}

/// Whether a lease of v2 would be lost to a node that follows v3 alone: somebody else's who renews it, or a reservation that v3
/// does not know. `own` says which holder is ourselves.
#[must_use]
pub fn needs_v2(
    own: impl Fn(&LeaseAttrs) -> bool,
    value: &[u8],
    reserved: bool,
    in_v3: Option<&[u8]>,
) -> bool {
    let Ok(attrs) = LeaseAttrs::from_json(value) else { return false };
    if own(&attrs) {
        return false;
    }
    !reserved || !in_v3.is_some_and(|other| Holder::of(other).is(Holder::from(&attrs)))
}

/// Whether two network configs ask for the same.
#[must_use]
pub fn same_config(one: &[u8], other: &[u8]) -> bool {
    one == other
        || match (NetworkConfig::from_json(one), NetworkConfig::from_json(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::lease_set::{LeaseSet, Own, RawLease};
    use crate::model::{MacAddr, Vni, VxlanData};

    const NAME: &str = "10.200.5.0-24";

    fn attrs(host: u8, machine: Option<&str>) -> LeaseAttrs {
        let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0, 0, 0, host]) };
        LeaseAttrs::vxlan([10, 8, 0, host].into(), data, machine.map(NodeId::from_machine_id))
    }

    fn value(host: u8, machine: Option<&str>) -> Vec<u8> {
        attrs(host, machine).to_json().into_bytes()
    }

    #[test]
    fn who_is_the_same_node() {
        for (one, other, same) in [
            ((1, Some("a")), (1, Some("a")), true),
            ((1, Some("a")), (2, Some("a")), true),
            ((1, Some("a")), (1, Some("b")), false),
            ((1, Some("a")), (1, None), true),
            ((1, None), (1, None), true),
            ((1, None), (2, None), false),
            ((1, Some("a")), (2, None), false),
        ] {
            let holder = |(host, machine)| Holder::from(&attrs(host, machine));
            assert_eq!(holder(one).is(holder(other)), same, "{one:?} {other:?}");
            assert_eq!(holder(other).is(holder(one)), same, "{other:?} {one:?}");
        }
        assert!(!Holder::Unreadable.is(Holder::Unreadable));
    }

    #[test]
    fn only_different_nodes_in_one_subnet_collide() {
        let collide = |name, one: &[u8], other: &[u8]| Collision::between(name, one, other).is_some();
        assert!(collide(NAME, &value(1, Some("a")), &value(2, Some("b"))));
        assert!(collide(NAME, &value(1, None), b"junk"));
        assert!(!collide(NAME, &value(1, Some("a")), &value(1, None)), "one node");
        assert!(!collide(NAME, b"junk", b"junk"), "the same junk");
        assert!(!collide("junk", b"some", b"other"), "no subnet");
    }

    #[test]
    fn a_collision_in_words() {
        let text = |v3: &[u8]| Collision::between(NAME, &value(1, Some("a")), v3).unwrap().to_string();
        let start = "subnets/10.200.5.0-24 is held in the v2 store by node 84eaf3ed2dce8138 with public IP 10.8.0.1 and in the v3 store by ";
        assert_eq!(
            text(&value(2, Some("b"))),
            format!(
                "{start}node ba6eb1dd34d0bf71 with public IP 10.8.0.2. v2 decides: the second node moves to another subnet when \
                 it is restarted with etcd-api=both"
            )
        );
        assert_eq!(
            text(&value(2, None)),
            format!(
                "{start}a Go daemon (it names no machine) with public IP 10.8.0.2. v2 decides: nodes that follow v2 do not reach \
                 the second one, and a Go daemon does not move by itself. Stop it, delete its key in v3 and its subnet.env, and \
                 start this daemon there with etcd-api=both"
            )
        );
        assert_eq!(text(b"x"), format!("{start}a value that is no lease. v2 decides: delete the key in v3"));
        let ends = |v3: &[u8]| Collision::between(NAME, &value(1, None), v3).unwrap().ends_by_itself();
        assert_eq!((ends(&value(2, Some("b"))), ends(&value(2, None)), ends(b"x")), (true, false, false));
    }

    #[test]
    fn what_becomes_of_our_copy() {
        let own = attrs(1, Some("a"));
        let (ours, gos, moved) = (value(1, Some("a")), value(1, None), value(9, Some("a")));
        let other = value(2, Some("b"));
        for (reserved, standing, expected) in [
            (false, None, Mirroring::Create),
            (true, None, Mirroring::Create),
            (false, Some((&ours, false)), Mirroring::Keep),
            (true, Some((&ours, true)), Mirroring::Keep),
            (false, Some((&ours, true)), Mirroring::Keep),
            (true, Some((&ours, false)), Mirroring::Write),
            (false, Some((&gos, false)), Mirroring::Write),
            (false, Some((&moved, false)), Mirroring::Write),
            (false, Some((&other, false)), Mirroring::Wait),
            (true, Some((&b"junk".to_vec(), true)), Mirroring::Wait),
        ] {
            let standing = standing.map(|(value, reserved)| (value.as_slice(), reserved));
            assert_eq!(mirror(&own, reserved, standing), expected, "{reserved} {standing:?}");
        }
    }

    #[test]
    fn v2_is_needed_for_whom_v3_would_lose() {
        let own = |attrs: &LeaseAttrs| attrs.public_ip.octets()[3] == 1;
        let (ours, other, third) = (value(1, None), value(2, None), value(3, None));
        for (lease, reserved, in_v3, needed) in [
            (&ours, false, None, false),
            (&other, false, None, true),
            (&other, false, Some(&other), true),
            (&other, true, None, true),
            (&other, true, Some(&other), false),
            (&other, true, Some(&third), true),
            (&b"junk".to_vec(), false, None, false),
        ] {
            assert_eq!(
                needs_v2(own, lease, reserved, in_v3.map(Vec::as_slice)),
                needed,
                "{reserved} {in_v3:?}"
            );
        }
    }

    #[test]
    fn configs_are_compared_by_what_they_ask_for() {
        let one = br#"{"Network":"10.200.0.0/16","Backend":{"Type": "vxlan"}}"#;
        assert!(same_config(
            one,
            br#"{"network":"10.200.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#
        ));
        assert!(!same_config(one, br#"{"Network":"10.201.0.0/16","Backend":{"Type":"vxlan"}}"#));
        assert!(same_config(b"junk", b"junk") && !same_config(b"junk", b"other"));
    }

    #[test]
    fn a_revision_is_read_back_with_its_store() {
        for (origin, revision) in [(Origin::V2, 0), (Origin::V2, 7), (Origin::V3, 0), (Origin::V3, 7)] {
            assert_eq!(Origin::of(origin.modified(revision)), (origin, revision));
        }
    }

    /// The set of all leases knows nothing of stores: the revisions alone make v2 win.
    #[test]
    fn v2_wins_where_leases_overlap_or_share_a_mac() {
        let own = Own {
            network: "10.200.0.0/16".parse().unwrap(),
            subnet: "10.200.99.0/24".parse().unwrap(),
            public_ip: [10, 8, 0, 99].into(),
            mac: MacAddr::new([2, 0, 0, 0, 0, 99]),
            vni: Vni::try_from(1).unwrap(),
            underlay: Vec::new(),
        };
        let usable = |v2: (&str, &LeaseAttrs, u64), v3: (&str, &LeaseAttrs, u64)| {
            let (v2_value, v3_value) = (v2.1.to_json(), v3.1.to_json());
            let raw = |name, value, origin: Origin, revision| RawLease {
                name,
                value,
                created: origin.created(revision),
                modified: origin.modified(revision),
            };
            let mut set = LeaseSet::new(own.clone());
            set.replace(&[
                raw(v2.0, v2_value.as_bytes(), Origin::V2, v2.2),
                raw(v3.0, v3_value.as_bytes(), Origin::V3, v3.2),
            ]);
            set.peers().map(|(subnet, _)| subnet.to_string()).collect::<Vec<_>>()
        };
        let (one, two) = (attrs(1, None), attrs(2, None));
        for revisions in [(1, 1000), (1000, 1)] {
            let (v2, v3) = revisions;
            assert_eq!(usable(("10.200.4.0-24", &one, v2), ("10.200.4.0-23", &two, v3)), ["10.200.4.0/24"]);
            let copied = LeaseAttrs { vxlan: one.vxlan, ..two.clone() };
            assert_eq!(
                usable(("10.200.4.0-24", &one, v2), ("10.200.7.0-24", &copied, v3)),
                ["10.200.4.0/24"]
            );
        }
    }
}
