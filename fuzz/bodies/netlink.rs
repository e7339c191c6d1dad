//! The kernel's messages about links, addresses, neighbours, FDB entries and routes, as one datagram and as one payload. Whatever
//! the bytes are: what is read as something that we could have put there is what we would read of what we would put there.

use nix::libc;

use super::message::{Malformed, Message, messages};
use super::parse::{self, Entry, Station};
use super::wire::{self, Stamp};
use super::{Change, Scope, observe, watch};
use crate::model::state::Operation;

/// Indexes of our device and of the one below.
const VTEP: u32 = 4;
const PARENT: u32 = 3;

/// The target.
pub fn check(bytes: &[u8]) {
    let found: Vec<Result<Message<'_>, Malformed>> = messages(bytes).collect();
    for message in found.iter().flatten() {
        let words = message.outcome().err().and_then(|refusal| refusal.words).unwrap_or_default();
        // A byte that is no UTF-8 is shown by three.
        assert!(words.len() <= 3 * message.payload.len());
        payload(message.payload);
    }
    payload(bytes);
    noticed(bytes, &found);
}

fn payload(bytes: &[u8]) {
    link(bytes);
    address(bytes);
    station(bytes);
    route(bytes);
}

fn link(bytes: &[u8]) {
    let Some(link) = parse::link(bytes) else { return };
    assert!(link.device.addresses.is_empty() && link.parent != Some(0));
    if let Some((index, name)) = parse::link_identity(bytes) {
        assert_eq!((index, name.as_ref()), (link.index, Some(&link.name)));
    }
}

fn address(bytes: &[u8]) {
    let Some(found) = parse::address(bytes) else { return };
    let again =
        sent(|out, stamp| wire::add_address(out, stamp, found.index, found.network), parse::address).unwrap();
    assert_eq!((again.index, again.network, again.host.ip), (found.index, found.network, found.host.ip));
}

fn station(bytes: &[u8]) {
    let Some(found) = parse::station(bytes) else { return };
    let put = match found.entry {
        Entry::Neighbor(ip, Some(mac)) => Operation::PutNeighbor(ip, mac),
        Entry::Fdb(mac, Some(target)) if target.plain => Operation::PutFdb(mac, target.dst),
        Entry::Neighbor(_, None) | Entry::Fdb(..) => return,
    };
    let again: Option<Station> =
        sent(|out, stamp| wire::operation(out, stamp, found.index, &put), parse::station);
    assert_eq!(again, Some(found));
}

fn route(bytes: &[u8]) {
    let Some(found) = parse::route(bytes) else { return };
    let route = found.route(Some(VTEP));
    assert_eq!(route.dst.ip(), route.dst.network());
    if !found.main_table || !route.plain {
        return;
    }
    let put = Operation::PutRoute(route);
    let again = sent(|out, stamp| wire::operation(out, stamp, VTEP, &put), parse::route).unwrap();
    assert_eq!((again.route(Some(VTEP)), again.main_table), (route, true));
}

/// What `read` makes of what we would send.
fn sent<T>(encode: impl FnOnce(&mut Vec<u8>, Stamp), read: fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut out = Vec::new();
    encode(&mut out, Stamp { sequence: 7, acknowledge: true });
    let mut messages = messages(&out);
    let message = messages.next().unwrap().unwrap();
    assert!(messages.next().is_none(), "one message");
    read(message.payload)
}

fn noticed(bytes: &[u8], found: &[Result<Message<'_>, Malformed>]) {
    let scope = Scope {
        vtep: "flannel.1".parse().unwrap(),
        parent: "wg0".parse().unwrap(),
        network: "10.200.0.0/16".parse().unwrap(),
    };
    let changes = watch::noticed(&scope, Some((VTEP, PARENT)), bytes);
    let general = changes.iter().filter(|change| change.key().is_none()).count();
    assert!(general <= 3 && changes.len() - general <= found.len());
    assert_eq!(changes.contains(&Change::Lost), found.iter().any(Result::is_err));
    for change in &changes {
        match change {
            Change::RouteAdded { route, .. } | Change::RouteRemoved(route) => {
                assert!(observe::inside(scope.network, route), "{route:?}");
            }
            Change::Neighbor(..) | Change::Fdb(..) | Change::Device | Change::Underlay | Change::Lost => {}
        }
    }
    if !found.iter().flatten().any(|message| message.kind == libc::RTM_NEWLINK) {
        let entries = |change: &Change| matches!(change, Change::Neighbor(..) | Change::Fdb(..));
        assert!(!watch::noticed(&scope, None, bytes).iter().any(entries), "nothing is known of our device");
    }
}
