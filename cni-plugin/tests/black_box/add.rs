//! Contract, sections 9.1 and 10.

use crate::common::{Bench, eventually};
use serde_json::json;
use std::path::Path;

/// The namespace of this test, which is also the plugin's.
const OWN: &str = "/proc/self/ns/net";

#[test]
fn the_result_is_the_delegate_s_with_nothing_lost() {
    let bench = Bench::new();
    let text = r#"{"cniVersion":"0.3.1","unknown":{"a":12345678901234567890123},"ips":[]}"#;
    bench.behave(json!({"ADD": {"stdout": text}}));
    assert_eq!(bench.add().stdout, text);
}

#[test]
fn a_result_without_a_version_gets_the_one_that_was_sent() {
    for stdout in ["{}", r#"{"cniVersion":""}"#] {
        let bench = Bench::new();
        bench.behave(json!({"ADD": {"stdout": stdout}}));
        assert_eq!(bench.add().result(), json!({"cniVersion": "0.3.1"}));
    }
}

#[test]
fn a_result_in_another_supported_version_is_passed_on_unconverted() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"stdout": r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/8"}}"#}}));
    assert_eq!(bench.add().result()["cniVersion"], "0.2.0");
}

#[test]
fn an_unusable_result_is_an_error_and_undone() {
    for (stdout, code) in [("", 6), ("null", 6), ("nonsense", 6), ("[]", 6), (r#"{"cniVersion":"9.9.9"}"#, 1)]
    {
        let bench = Bench::new();
        bench.behave(json!({"ADD": {"stdout": stdout}}));
        bench.add().error(code);
        assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL", 0), "{stdout}");
    }
}

#[test]
fn the_own_namespace_is_refused_before_anything_runs() {
    let bench = Bench::new();
    for command in ["ADD", "DEL"] {
        bench.call(command).env("CNI_NETNS", OWN).run().error(8);
    }
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("", 0));
    let conf = bench.conf(json!({"cniVersion": "0.4.0", "prevResult": {}}));
    bench.call("CHECK").env("CNI_NETNS", OWN).conf(&conf).run().error(999);
}

#[test]
fn the_override_allows_the_own_namespace() {
    for word in ["1", "true", "TRUE"] {
        let bench = Bench::new();
        bench.call("ADD").env("CNI_NETNS", OWN).env("CNI_NETNS_OVERRIDE", word).run().result();
        bench.call("DEL").env("CNI_NETNS", OWN).env("CNI_NETNS_OVERRIDE", word).run().silent();
    }
    Bench::new().call("ADD").env("CNI_NETNS", OWN).env("CNI_NETNS_OVERRIDE", "yes").run().error(8);
}

#[test]
fn a_config_error_is_told_before_the_namespace_and_that_before_subnet_env() {
    let bench = Bench::new();
    bench.no_subnet_env();
    let call = || bench.call("ADD").env("CNI_NETNS", OWN);
    call().conf(&bench.conf(json!({"delegate": {"name": "x"}}))).run().error(7);
    call().run().error(8);
}

#[test]
fn a_missing_delegate_leaves_no_trace() {
    let bench = Bench::new();
    let conf = bench.conf(json!({"delegate": {"type": "nothing"}}));
    let text = bench.call("ADD").conf(&conf).run().refused(999);
    assert!(text.contains("\"nothing\"") && text.contains(bench.path("bin").to_str().unwrap()), "{text}");
    assert!(!bench.path("state").exists());
}

#[test]
fn a_failed_add_is_undone_with_the_same_configuration_and_reports_its_own_error() {
    let bench = Bench::new();
    bench.behave(
        json!({"ADD": {"stdout": r#"{"code":100,"msg":"add"}"#, "exit": 1}, "DEL": {"stdout": "ignored"}}),
    );
    assert_eq!(bench.add().error(100)["msg"], "add");
    assert_eq!(bench.commands(), "ADD DEL");
    let asked = bench.asked();
    assert_eq!(asked[0].config(), asked[1].config());
    for key in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert_eq!(asked[0].env(key), asked[1].env(key), "{key}");
    }
    assert_eq!(bench.state_names(), [""; 0]);
    bench.del().silent();
}

#[test]
fn when_the_clean_up_fails_too_the_state_stays_for_the_runtime_s_own_del() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"stdout": r#"{"code":100,"msg":"add"}"#, "exit": 1}, "DEL": {"exit": 1}}));
    assert_eq!(bench.add().error(100)["msg"], "add");
    assert_eq!(bench.state_names(), ["pod"]);
    bench.behave(json!({}));
    bench.del().silent();
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("ADD DEL DEL", 0));
}

#[test]
fn a_second_add_of_the_same_interface_neither_undoes_the_first_nor_loses_its_state() {
    let bench = Bench::new();
    bench.add().result();
    let first = std::fs::read(bench.state("pod")).unwrap();
    bench.behave(json!({"ADD": {"stdout": r#"{"code":100,"msg":"exists"}"#, "exit": 1}}));
    bench.subnet_env(&crate::common::V4.replace("10.1.17.1", "10.1.18.1"));
    bench.add().error(100);
    assert_eq!(bench.commands(), "ADD ADD");
    assert_eq!(std::fs::read(bench.state("pod")).unwrap(), first);
}

#[test]
fn a_second_add_that_succeeds_saves_its_configuration() {
    let bench = Bench::new();
    bench.add().result();
    bench.subnet_env(&crate::common::V4.replace("10.1.17.1", "10.1.18.1"));
    bench.add().result();
    assert_eq!(bench.saved("pod")["ipam"]["ranges"], json!([[{"subnet": "10.1.18.0/24"}]]));
}

#[test]
fn the_state_is_complete_before_the_delegate_starts() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"wait": true}}));
    let child = bench.call("ADD").start();
    eventually("the delegate starts", || (!bench.asked().is_empty()).then_some(()));
    assert_eq!(bench.saved("pod"), bench.asked()[0].config());
    std::fs::write(bench.path("bin/bridge.go"), "").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
}

#[test]
fn a_prev_result_is_ignored_with_a_warning() {
    let bench = Bench::new();
    let outcome = bench.call("ADD").conf(&bench.conf(json!({"prevResult": {"ips": []}}))).run();
    outcome.result();
    assert!(outcome.stderr.contains("prevResult"), "{}", outcome.stderr);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_code_5_and_nothing_runs() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), "").unwrap();
    let conf = bench.conf(json!({"dataDir": bench.path("file/state")}));
    bench.call("ADD").conf(&conf).run().error(5);
    bench.call("ADD").env("CNI_CONTAINERID", "x".repeat(256)).run().error(5);
    assert_eq!(bench.commands(), "");
    assert!(Path::new(&bench.path("file")).is_file());
}
