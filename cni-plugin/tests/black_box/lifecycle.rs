//! Upstream's lifecycle for every protocol version and family, and many containers at once.

use crate::common::{Bench, DUAL, TWO_NETWORKS, V4, V6, VERSIONS, eventually};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

fn lifecycle(version: Value, subnet_env: &str, ranges: &Value, routes: &Value) {
    let bench = Bench::new();
    bench.subnet_env(subnet_env);
    let conf = bench.conf(json!({"cniVersion": version}));
    let result = bench.call("ADD").conf(&conf).run().result();
    let mut expected = json!({"name": "cni-flannel", "type": "bridge", "ipMasq": false, "isGateway": true, "mtu": 1472,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}});
    if version.is_string() {
        expected["cniVersion"] = version.clone();
    }
    assert_eq!(bench.saved("pod"), expected);
    assert_eq!(result["cniVersion"], version.as_str().unwrap_or("0.1.0"));
    bench.call("DEL").conf(&conf).run().silent();
    assert_eq!(bench.state_names(), [""; 0]);
    bench.call("DEL").conf(&conf).run().silent();
}

fn all_versions(subnet_env: &str, ranges: Value, routes: Value) {
    lifecycle(Value::Null, subnet_env, &ranges, &routes);
    for version in VERSIONS {
        lifecycle(json!(version), subnet_env, &ranges, &routes);
    }
}

#[test]
fn ipv4_in_every_version() {
    all_versions(V4, json!([[{"subnet": "10.1.17.0/24"}]]), json!([{"dst": "10.1.0.0/16"}]));
}

#[test]
fn ipv6_in_every_version() {
    all_versions(V6, json!([[{"subnet": "fc00::/64"}]]), json!([{"dst": "fc00::/48"}]));
}

#[test]
fn dual_stack_in_every_version() {
    let ranges = json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]]);
    all_versions(DUAL, ranges, json!([{"dst": "10.1.0.0/16"}, {"dst": "fc00::/48"}]));
}

#[test]
fn two_networks_in_every_version() {
    let routes = json!([{"dst": "10.1.0.0/16"}, {"dst": "192.168.0.0/16"}]);
    all_versions(TWO_NETWORKS, json!([[{"subnet": "10.1.17.0/24"}]]), routes);
}

/// 50 containers at once, each attached and detached; most of the runs are killed at a random moment,
/// with all their children or alone, which leaves the delegate at work. The runtime's part is to
/// repeat DEL until it succeeds.
#[test]
fn fifty_parallel_containers_with_random_kills_leave_nothing() {
    let bench = Bench::new();
    let leases = bench.path("bin/bridge.leases");
    fs::create_dir(&leases).unwrap();
    bench.behave(json!({"*": {"leases": true}}));
    std::thread::scope(|scope| {
        for number in 0..50 {
            let bench = &bench;
            scope.spawn(move || live_and_die(bench, &format!("pod{number}")));
        }
    });
    assert_eq!(bench.state_names(), [""; 0], "no state file, whole or half");
    let left: Vec<_> = fs::read_dir(leases).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [""; 0], "leases");
}

fn live_and_die(bench: &Bench, id: &str) {
    for _ in 0..3 {
        perhaps_killed(bench, "ADD", id);
        eventually("DEL succeeds", || (perhaps_killed(bench, "DEL", id) == Some(0)).then_some(()));
    }
}

/// The exit code, or `None` for a run that was killed.
fn perhaps_killed(bench: &Bench, command: &str, id: &str) -> Option<i32> {
    let mut child = bench.call(command).env("CNI_CONTAINERID", id).start();
    let dice = RandomState::new().hash_one(id);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    if !dice.is_multiple_of(3) {
        std::thread::sleep(Duration::from_micros(dice % 30_000));
        let _ =
            if dice.is_multiple_of(2) { kill(pid, Signal::SIGKILL) } else { killpg(pid, Signal::SIGKILL) };
    }
    child.wait().unwrap().code()
}
