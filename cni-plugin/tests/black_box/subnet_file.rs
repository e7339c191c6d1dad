//! Contract, section 5, as ADD sees it, and the bounded wait.

use crate::common::{Bench, Outcome, V4};
use serde_json::json;
use std::fs;
use std::io::Read;

#[test]
fn an_absent_file_is_code_11_and_says_what_to_look_at() {
    let bench = Bench::new();
    bench.no_subnet_env();
    let text = bench.add().refused(11);
    for part in [
        bench.path("subnet.env").to_str().unwrap(),
        "No such file",
        "flanneld's log",
        "systemctl status flanneld",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("", 0));
}

#[test]
fn missing_keys_are_code_11_and_all_named_in_order() {
    let bench = Bench::new();
    bench.subnet_env("foo=bar\n");
    let text = bench.add().refused(11);
    let keys = "missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ";
    assert!(text.contains(keys) && text.contains(bench.path("subnet.env").to_str().unwrap()), "{text}");
}

#[test]
fn a_malformed_value_is_code_7_with_its_line() {
    for line in [
        "FLANNEL_MTU",
        "FLANNEL_MTU=x",
        "FLANNEL_IPMASQ=TRUE",
        "FLANNEL_SUBNET=fc00::1/64",
        "FLANNEL_NETWORK=",
    ] {
        let bench = Bench::new();
        bench.subnet_env(&format!("{V4}{line}\n"));
        assert!(bench.add().refused(7).contains("line 5"), "{line}");
    }
}

#[test]
fn an_unreadable_file_is_code_5() {
    let bench = Bench::new();
    bench.call("ADD").conf(&bench.conf(json!({"subnetFile": bench.path("bin")}))).run().error(5);
}

#[test]
fn with_a_wait_add_goes_on_as_soon_as_the_file_is_whole() {
    let bench = Bench::new();
    bench.subnet_env("FLANNEL_MTU=1472\n");
    let mut child = bench.call("ADD").conf(&bench.conf(json!({"subnetFileWaitSeconds": 120}))).start();
    // It says that it waits before it does.
    child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fs::write(bench.path("new"), V4).unwrap();
    fs::rename(bench.path("new"), bench.path("subnet.env")).unwrap();
    let outcome = Outcome::new(&child.wait_with_output().unwrap());
    outcome.result();
    assert!(outcome.stderr.contains("waiting up to 120 s"), "{}", outcome.stderr);
}

#[test]
fn a_wait_ends_with_code_11_and_is_not_spent_on_what_cannot_heal() {
    let bench = Bench::new();
    bench.no_subnet_env();
    bench.call("ADD").conf(&bench.conf(json!({"subnetFileWaitSeconds": 1}))).run().error(11);
    bench.subnet_env("FLANNEL_MTU=x\n");
    bench.call("ADD").conf(&bench.conf(json!({"subnetFileWaitSeconds": 120}))).run().error(7);
    bench.no_subnet_env();
    bench.call("DEL").conf(&bench.conf(json!({"subnetFileWaitSeconds": 120}))).run().silent();
}
