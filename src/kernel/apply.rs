//! Changing entries in bulk: many requests a send, one acknowledgement, one result per operation.
//!
//! Keeps the order it is given and decides nothing; what is already as asked for is success.

use nix::libc;

use super::linux::LinuxKernel;
use super::refusal::Refusal;
use super::socket::append_batch;
use super::{KernelError, Scope, wire};
use crate::model::state::{Operation, PROTOCOL_BOOT, Route, RouteDevice};

/// Requests a send, those of 300 peers: about 45 KB, well below the default send buffer (208 KiB).
const CHUNK: usize = 900;

type Results = Vec<Result<(), KernelError>>;

/// Carries out all operations.
pub(super) fn apply(kernel: &mut LinuxKernel, scope: &Scope, operations: &[Operation]) -> Results {
    let vtep = match kernel.vtep_index(&scope.vtep) {
        Ok(vtep) => vtep,
        Err(refusal) => {
            return operations.iter().map(|operation| judge(scope, operation, &refusal)).collect();
        }
    };
    match vtep {
        Some(vtep) => with_device(kernel, scope, vtep, operations),
        None => without_device(kernel, scope, operations),
    }
}

fn with_device(kernel: &mut LinuxKernel, scope: &Scope, vtep: u32, operations: &[Operation]) -> Results {
    let mut results = Vec::with_capacity(operations.len());
    for chunk in operations.chunks(CHUNK) {
        if !results.is_empty() {
            // The echo of many chunks would overflow the receive buffer if it stayed there until the end.
            kernel.watch.iter_mut().for_each(super::watch::Watch::drain);
        }
        send(kernel, scope, vtep, chunk, &mut results);
    }
    results
}

/// The messages that carry out `operations` on the device with this index, as they are sent: only the last is acknowledged.
#[must_use]
pub fn encoded(vtep: u32, operations: &[Operation]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_batch(&mut bytes, 1, operations, |out, stamp, operation| {
        wire::operation(out, stamp, vtep, operation);
    });
    bytes
}

/// Nothing can be put on a device that is not there, and everything on it is gone already.
fn without_device(kernel: &mut LinuxKernel, scope: &Scope, operations: &[Operation]) -> Results {
    let mut results = Vec::with_capacity(operations.len());
    for operation in operations {
        if on_our_device(operation) {
            let refusal = Refusal { errno: libc::ENODEV, words: None };
            results.push(judge(scope, operation, &refusal));
        } else {
            send(kernel, scope, 0, std::slice::from_ref(operation), &mut results);
        }
    }
    results
}

fn on_our_device(operation: &Operation) -> bool {
    match operation {
        Operation::PutRoute(route) | Operation::DeleteRoute(route) => route.device == RouteDevice::Vtep,
        _ => true,
    }
}

fn send(kernel: &mut LinuxKernel, scope: &Scope, vtep: u32, chunk: &[Operation], results: &mut Results) {
    let first = results.len();
    results.resize(first + chunk.len(), Ok(()));
    let mut device_is_gone = false;
    let odd = &kernel.odd;
    kernel.requests.batch(
        chunk,
        |out, stamp, operation| match operation {
            Operation::DeleteFdb(mac, _) if odd.contains(mac) => {
                wire::delete_fdb_entirely(out, stamp, vtep, *mac);
            }
            _ => wire::operation(out, stamp, vtep, operation),
        },
        |position, refusal| {
            device_is_gone |= refusal.errno == libc::ENODEV;
            let place = results.get_mut(first + position).filter(|result| result.is_ok());
            if let (Some(result), Some(operation)) = (place, chunk.get(position)) {
                *result = judge(scope, operation, &refusal);
            }
        },
    );
    if device_is_gone {
        kernel.forget_index();
    }
}

/// Absent on delete and present on add are success.
fn judge(scope: &Scope, operation: &Operation, refusal: &Refusal) -> Result<(), KernelError> {
    let as_wanted = match operation {
        Operation::DeleteRoute(_) | Operation::DeleteNeighbor(..) | Operation::DeleteFdb(..) => {
            matches!(refusal.errno, libc::ESRCH | libc::ENOENT | libc::ENODEV)
        }
        // The same route stands behind another one in its slot; `NLM_F_REPLACE` does not move it.
        Operation::PutRoute(_) => refusal.errno == libc::EEXIST,
        Operation::PutFdb(..) | Operation::PutNeighbor(..) => false,
    };
    if as_wanted { Ok(()) } else { Err(refusal.doing(command(scope, operation))) }
}

/// The command that would do the same.
#[must_use]
pub fn command(scope: &Scope, operation: &Operation) -> String {
    let dev = &scope.vtep;
    match operation {
        Operation::PutFdb(mac, dst) => format!("bridge fdb replace {mac} dev {dev} dst {dst} self permanent"),
        Operation::DeleteFdb(mac, dst) => format!("bridge fdb del {mac} dev {dev} dst {dst} self"),
        Operation::PutNeighbor(ip, mac) => {
            format!("ip neigh replace {ip} lladdr {mac} dev {dev} nud permanent")
        }
        Operation::DeleteNeighbor(ip, _) => format!("ip neigh del {ip} dev {dev}"),
        Operation::PutRoute(route) => route_command("replace", scope, route),
        Operation::DeleteRoute(route) => route_command("del", scope, route),
    }
}

fn route_command(verb: &str, scope: &Scope, route: &Route) -> String {
    let kind = if route.device == RouteDevice::Nowhere { "blackhole " } else { "" };
    let mut words = format!("ip route {verb} {kind}{}", route.dst);
    if let Some(gateway) = route.gateway {
        words.push_str(&format!(" via {gateway}"));
    }
    if route.device == RouteDevice::Vtep {
        words.push_str(&format!(" dev {}", scope.vtep));
    }
    if route.onlink {
        words.push_str(" onlink");
    }
    if route.metric != 0 {
        words.push_str(&format!(" metric {}", route.metric));
    }
    words
}

/// A route as `ip route show` has it, as far as it tells whose it is.
#[must_use]
pub fn route_in_words(route: &Route) -> String {
    let gateway = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let protocol = match route.protocol {
        2 => "kernel".to_owned(),
        PROTOCOL_BOOT => "boot".to_owned(),
        4 => "static".to_owned(),
        other => other.to_string(),
    };
    format!("{}{gateway} proto {protocol} metric {}", route.dst, route.metric)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::MacAddr;

    fn scope() -> Scope {
        Scope {
            vtep: "flannel.1".parse().unwrap(),
            parent: "wg0".parse().unwrap(),
            network: "10.200.0.0/16".parse().unwrap(),
        }
    }

    #[test]
    fn operations_are_named_as_commands() {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 10]);
        let (subnet, station) = ("10.200.2.0/24".parse().unwrap(), Ipv4Addr::new(10, 8, 0, 112));
        let overlay = Route::overlay(subnet);
        let commands = [
            (
                Operation::PutFdb(mac, station),
                "bridge fdb replace 02:00:00:00:00:0a dev flannel.1 dst 10.8.0.112 self permanent",
            ),
            (
                Operation::DeleteFdb(mac, station),
                "bridge fdb del 02:00:00:00:00:0a dev flannel.1 dst 10.8.0.112 self",
            ),
            (
                Operation::PutNeighbor(subnet.ip(), mac),
                "ip neigh replace 10.200.2.0 lladdr 02:00:00:00:00:0a dev flannel.1 nud permanent",
            ),
            (Operation::DeleteNeighbor(subnet.ip(), mac), "ip neigh del 10.200.2.0 dev flannel.1"),
            (
                Operation::PutRoute(overlay),
                "ip route replace 10.200.2.0/24 via 10.200.2.0 dev flannel.1 onlink",
            ),
            (
                Operation::DeleteRoute(Route { metric: 7, ..overlay }),
                "ip route del 10.200.2.0/24 via 10.200.2.0 dev flannel.1 onlink metric 7",
            ),
            (
                Operation::PutRoute(Route::blackhole(subnet)),
                "ip route replace blackhole 10.200.2.0/24 metric 4294967295",
            ),
            (
                Operation::PutRoute(Route::direct(subnet, station)),
                "ip route replace 10.200.2.0/24 via 10.8.0.112",
            ),
        ];
        for (operation, expected) in commands {
            assert_eq!(command(&scope(), &operation), expected);
        }
    }

    #[test]
    fn absent_on_delete_is_success_and_absent_on_put_is_not() {
        let route = Route::overlay("10.200.2.0/24".parse().unwrap());
        for errno in [libc::ESRCH, libc::ENOENT, libc::ENODEV] {
            let refusal = Refusal { errno, words: None };
            assert!(judge(&scope(), &Operation::DeleteRoute(route), &refusal).is_ok());
            assert!(judge(&scope(), &Operation::PutRoute(route), &refusal).is_err());
        }
        let denied = Refusal { errno: libc::EPERM, words: None };
        assert!(judge(&scope(), &Operation::DeleteRoute(route), &denied).is_err());
    }
}
