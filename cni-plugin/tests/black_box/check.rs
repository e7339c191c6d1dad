//! Contract, section 9.3.

use crate::common::Bench;
use serde_json::{Value, json};

fn conf(bench: &Bench, prev: Value) -> Value {
    bench.conf(json!({"cniVersion": "1.0.0", "prevResult": prev}))
}

fn added() -> Bench {
    let bench = Bench::new();
    bench.call("ADD").conf(&conf(&bench, Value::Null)).run().result();
    bench
}

#[test]
fn the_delegate_checks_the_saved_configuration_with_the_prev_result() {
    let bench = added();
    let prev = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.17.2/24"}]});
    bench.subnet_env(&crate::common::V4.replace("10.1.17.1", "10.1.18.1"));
    bench.call("CHECK").conf(&conf(&bench, prev.clone())).run().silent();
    assert_eq!(bench.commands(), "ADD CHECK");
    let asked = bench.asked();
    let mut expected = asked[0].config();
    expected["prevResult"] = prev;
    assert_eq!(asked[1].config(), expected);
    assert_eq!(bench.state_names(), ["pod"]);
}

#[test]
fn its_verdict_is_passed_on() {
    let bench = added();
    bench.behave(json!({"CHECK": {"stdout": r#"{"code":101,"msg":"gone"}"#, "exit": 1}}));
    assert_eq!(bench.call("CHECK").conf(&conf(&bench, json!({}))).run().error(101)["msg"], "gone");
    bench.no_subnet_env();
    bench.behave(json!({"CHECK": {"stdout": "chatter"}}));
    bench.call("CHECK").conf(&conf(&bench, json!({}))).run().silent();
}

#[test]
fn without_a_prev_result_it_is_code_7() {
    let bench = added();
    assert!(bench.call("CHECK").conf(&conf(&bench, Value::Null)).run().refused(7).contains("prevResult"));
}

#[test]
fn a_container_that_was_never_added_is_an_error() {
    let bench = Bench::new();
    let text = bench.call("CHECK").conf(&conf(&bench, json!({}))).run().refused(999);
    assert!(text.contains("pod") && text.contains("eth0"), "{text}");
    bench.write_state("pod", "");
    bench.call("CHECK").conf(&conf(&bench, json!({}))).run().error(999);
    assert_eq!(bench.commands(), "");
}

#[test]
fn another_interface_of_the_container_is_not_checked_with_this_one_s_state() {
    let bench = added();
    bench.call("CHECK").env("CNI_IFNAME", "net1").conf(&conf(&bench, json!({}))).run().error(999);
}
