//! `flannel` in the hands of a person, and in those of a bug.

use crate::common::{Bench, Outcome, VERSIONS, fake_delegate, flannel};
use serde_json::{Value, json};
use std::ffi::OsString;

const ROLE: &str = r#"{"name": "cni0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

/// `flannel <words>` without any CNI variable; `env` runs it, because only it takes arguments.
fn typed(bench: &Bench, words: &[&str], stdin: &str) -> Outcome {
    let words: Vec<OsString> =
        ["env", flannel().to_str().unwrap()].iter().chain(words).map(Into::into).collect();
    let call = bench.call("").without("CNI_PATH").stdin(stdin);
    let (last, first) = words.split_last().unwrap();
    call.under(first).run_program(last.as_ref())
}

#[test]
fn it_explains_itself() {
    let bench = Bench::new();
    for words in [&[][..], &["--help"], &["-h"], &["help"], &["--version"]] {
        let outcome = typed(&bench, words, "");
        outcome.silent();
        assert!(outcome.stderr.contains(&VERSIONS.join(", ")) && outcome.stderr.contains("check-config"));
    }
}

#[test]
fn an_unknown_word_is_refused_on_stderr() {
    let outcome = typed(&Bench::new(), &["chekc"], "");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(outcome.stderr.contains("\"chekc\""), "{}", outcome.stderr);
}

#[test]
fn arguments_are_ignored_when_a_runtime_calls() {
    let bench = Bench::new();
    let call = bench.call("VERSION").under(&["env".into(), flannel().into()]);
    call.run_program("check-config".as_ref()).result();
}

#[test]
fn check_config_shows_what_the_delegate_would_get() {
    let bench = Bench::new();
    let mut list: Value = serde_json::from_str(ROLE).unwrap();
    list["plugins"][0]["subnetFile"] = json!(bench.path("subnet.env"));
    let outcome = typed(&bench, &["check-config"], &list.to_string());
    let expected = json!({"cniVersion": "0.3.1", "hairpinMode": true, "ipMasq": false, "isDefaultGateway": true, "isGateway": true,
        "mtu": 1472, "name": "cni0", "type": "bridge",
        "ipam": {"ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}], "type": "host-local"}});
    assert_eq!(outcome.result(), expected);
    assert_eq!(outcome.stderr, "the configuration is usable\n");
    assert_eq!(bench.commands(), "");
}

#[test]
fn check_config_fails_for_what_add_would_refuse() {
    let list = json!({"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {"ipam": {}}}]});
    let outcome = typed(&Bench::new(), &["check-config"], &list.to_string());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(
        outcome.stderr.starts_with("error: ") && outcome.stderr.contains("delegate.ipam"),
        "{}",
        outcome.stderr
    );
}

/// The fake stands in for the plugin: it panics under the plugin's own hook.
#[test]
fn a_panic_is_exit_1_and_one_error_object() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"panic": true}}));
    let program = bench.path("bin/bridge");
    assert!(fake_delegate().is_file());
    let error = bench.call("ADD").run_program(&program).error(999);
    assert!(error["details"].as_str().unwrap().contains("asked to panic"), "{error}");
}
