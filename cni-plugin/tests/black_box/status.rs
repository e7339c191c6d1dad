//! Contract, section 9.4.

use crate::common::{Bench, Run};
use serde_json::{Value, json};

/// As libcni sends it: container variables present and empty.
fn status(bench: &Bench, extra: Value) -> Run {
    let mut conf = bench.conf(extra);
    conf["cniVersion"] = json!("1.1.0");
    let empty = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
    empty.iter().fold(bench.call("STATUS"), |call, key| call.env(key, "")).conf(&conf)
}

#[test]
fn the_delegate_is_asked_with_the_configuration_add_would_use() {
    let bench = Bench::new();
    bench.behave(json!({"STATUS": {"stdout": "chatter"}}));
    status(&bench, json!({})).run().silent();
    let asked = bench.asked().remove(0);
    assert_eq!(asked.command(), "STATUS");
    assert_eq!(asked.env("CNI_CONTAINERID").unwrap(), "");
    bench.behave(json!({}));
    bench.call("ADD").conf(&bench.conf(json!({"cniVersion": "1.1.0"}))).run().result();
    assert_eq!(asked.config(), bench.asked()[1].config());
}

#[test]
fn a_missing_incomplete_or_malformed_subnet_env_is_code_50_with_the_reason() {
    let bench = Bench::new();
    for (text, reason) in [("", "missing FLANNEL_NETWORK"), ("FLANNEL_MTU=x", "FLANNEL_MTU")] {
        bench.subnet_env(text);
        assert!(status(&bench, json!({})).run().refused(50).contains(reason));
    }
    bench.no_subnet_env();
    assert!(status(&bench, json!({})).run().refused(50).contains("flanneld's log"));
    assert_eq!(bench.commands(), "");
}

#[test]
fn a_missing_delegate_is_code_50() {
    let bench = Bench::new();
    assert!(status(&bench, json!({"delegate": {"type": "nothing"}})).run().refused(50).contains("not found"));
}

#[test]
fn a_wrong_configuration_is_code_7_and_the_delegate_s_error_its_own() {
    let bench = Bench::new();
    status(&bench, json!({"delegate": {"name": "x"}})).run().error(7);
    bench.behave(json!({"STATUS": {"stdout": r#"{"code":51,"msg":"down"}"#, "exit": 1}}));
    assert_eq!(status(&bench, json!({})).run().error(51)["msg"], "down");
}

#[test]
fn it_does_not_wait_and_leaves_no_state() {
    let bench = Bench::new();
    bench.no_subnet_env();
    status(&bench, json!({"subnetFileWaitSeconds": 120})).run().error(50);
    assert_eq!(bench.state_names(), [""; 0]);
}
