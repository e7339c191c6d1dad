//! Contract, sections 2 and 3: variables, order of checks, output, error objects, versions.

use crate::common::{Bench, VERSIONS};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

#[test]
fn missing_variables_are_one_error_in_table_order() {
    let bench = Bench::new();
    let refused = |command: &str, gone: &[&str]| {
        let call = gone.iter().fold(bench.call(command), |call, key| call.without(key));
        call.run().refused(4)
    };
    let all = ["CNI_PATH", "CNI_IFNAME", "CNI_NETNS", "CNI_CONTAINERID"];
    for command in ["ADD", "CHECK"] {
        assert!(
            refused(command, &all).contains("[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
            "{command}"
        );
        assert!(
            refused(command, &["CNI_IFNAME", "CNI_NETNS"]).contains("[CNI_NETNS,CNI_IFNAME]"),
            "{command}"
        );
    }
    assert!(refused("DEL", &all).contains("[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"));
    for command in ["STATUS", "GC"] {
        assert!(refused(command, &all).contains("[CNI_PATH]"), "{command}");
    }
    assert_eq!(bench.commands(), "");
}

#[test]
fn each_required_variable_counts_as_missing_when_empty() {
    let bench = Bench::new();
    for (command, keys) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
        ("STATUS", &["CNI_PATH"]),
        ("GC", &["CNI_PATH"]),
    ] {
        for key in keys {
            let text = bench.call(command).env(key, "").run().refused(4);
            assert!(text.contains(&format!("[{key}]")), "{command} {key}: {text}");
        }
    }
}

#[test]
fn a_malformed_id_or_name_ends_the_run_before_missing_ones_are_reported() {
    let bench = Bench::new();
    for (key, value) in [
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "pod\n"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", ".."),
    ] {
        for command in ["ADD", "DEL", "CHECK"] {
            let text = bench.call(command).env(key, value).without("CNI_PATH").run().refused(4);
            assert!(text.contains(key) && !text.contains("CNI_PATH"), "{text}");
        }
    }
}

#[test]
fn ids_and_names_are_validated_only_where_they_are_required() {
    let bench = Bench::new();
    let conf = bench.conf(json!({"cniVersion": "1.1.0"}));
    for command in ["STATUS", "GC"] {
        let call =
            bench.call(command).env("CNI_CONTAINERID", "%").env("CNI_IFNAME", "a/b").env("CNI_NETNS", "");
        call.conf(&conf).run().silent();
    }
}

#[test]
fn an_unreadable_stdin_is_code_5() {
    let bench = Bench::new();
    bench.call("ADD").run_with_stdin(Stdio::from(File::open("/").unwrap())).error(5);
}

#[test]
fn stdin_that_is_no_object_with_a_name() {
    let bench = Bench::new();
    for (text, code) in
        [("", 6), ("nonsense", 6), ("[]", 6), ("{\"name\":7}", 6), ("{}", 7), ("{\"name\":\"\"}", 7)]
    {
        bench.call("ADD").stdin(text).run().error(code);
    }
    let bad = bench.call("ADD").stdin(r#"{"name":"a b"}"#).run().error(7);
    assert_eq!(bad["details"], "a b");
}

#[test]
fn variables_come_before_stdin_and_stdin_before_the_command() {
    let bench = Bench::new();
    bench.call("ADD").without("CNI_PATH").stdin("nonsense").run().error(4);
    bench.call("add").stdin("nonsense").run().error(6);
    bench.call("add").stdin("{}").run().error(7);
    let unknown = bench.call("add").stdin(r#"{"name":"a","cniVersion":7}"#).run().error(4);
    assert_eq!(unknown["msg"], "unknown CNI_COMMAND: add");
    bench.call("ADD").stdin(r#"{"name":"a","cniVersion":7,"delegate":7}"#).run().error(6);
    bench.call("ADD").stdin(r#"{"name":"a","cniVersion":"7","delegate":7}"#).run().error(1);
}

#[test]
fn the_error_object_carries_the_negotiated_version_or_the_newest() {
    let bench = Bench::new();
    let version = |conf: Value| bench.call("ADD").conf(&conf).run().error(7)["cniVersion"].clone();
    assert_eq!(version(json!({"name": "a", "cniVersion": "0.4.0", "delegate": 7})), "0.4.0");
    assert_eq!(version(json!({"name": "a", "delegate": 7})), "0.1.0");
    assert_eq!(version(json!({"name": ""})), "1.1.0");
    assert_eq!(
        bench.call("ADD").conf(&json!({"name": "a", "cniVersion": "9"})).run().error(1)["cniVersion"],
        "1.1.0"
    );
    assert_eq!(bench.call("ADD").without("CNI_PATH").run().error(4)["cniVersion"], "1.1.0");
}

#[test]
fn without_a_command_it_explains_itself_on_stderr_and_succeeds() {
    let bench = Bench::new();
    for call in [bench.call(""), bench.call("ADD").without("CNI_COMMAND").without("CNI_PATH")] {
        let outcome = call.run();
        outcome.silent();
        let mut lines = outcome.stderr.lines();
        assert!(lines.next().unwrap().starts_with("CNI Plugin flannel version"));
        assert_eq!(
            lines.next().unwrap(),
            format!("CNI protocol versions supported: {}", VERSIONS.join(", "))
        );
    }
}

#[test]
fn version_lists_all_and_echoes_the_probe() {
    let bench = Bench::new();
    for version in VERSIONS {
        let answer = bench.call("VERSION").stdin(json!({"cniVersion": version}).to_string()).run().result();
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    for odd in ["", "nonsense", "{}", r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":7}"#] {
        assert_eq!(bench.call("VERSION").stdin(odd).run().result()["cniVersion"], "1.1.0", "{odd}");
    }
}

#[test]
fn version_answers_podman_s_probe_without_validating_it() {
    let bench = Bench::new();
    let call = bench.call("VERSION").env("CNI_CONTAINERID", "").env("CNI_NETNS", "dummy");
    let call = call.env("CNI_IFNAME", "dummy").env("CNI_PATH", "dummy").stdin(r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(call.run().result()["supportedVersions"], json!(VERSIONS));
    let bare = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    bare.iter().fold(bench.call("VERSION"), |call, key| call.without(key)).run().result();
}

#[test]
fn version_does_not_wait_for_an_open_stdin_for_ever() {
    let bench = Bench::new();
    let (reader, _writer_stays_open) = std::io::pipe().unwrap();
    assert_eq!(bench.call("VERSION").run_with_stdin(Stdio::from(reader)).result()["cniVersion"], "1.1.0");
    bench.call("VERSION").run_with_stdin(Stdio::null()).result();
    bench.call("VERSION").run_with_stdin(Stdio::from(File::open("/").unwrap())).result();
}

#[test]
fn versions_that_are_none() {
    let bench = Bench::new();
    for odd in ["0.3", "1.0", "v1.0.0", "1.2.0", "9.9.9"] {
        let conf = bench.conf(json!({"cniVersion": odd}));
        let error = bench.call("ADD").conf(&conf).run().error(1);
        assert_eq!(error["msg"], "incompatible CNI versions");
        let details = error["details"].as_str().unwrap();
        assert!(details.contains(odd) && details.contains(&VERSIONS.join(", ")), "{details}");
        bench.call("DEL").conf(&conf).run().error(1);
    }
}

#[test]
fn check_status_and_gc_need_their_versions() {
    let bench = Bench::new();
    let code = |command: &str, version: Value| {
        let conf = bench.conf(json!({"cniVersion": version, "prevResult": {}}));
        let outcome = bench.call(command).conf(&conf).run();
        serde_json::from_str::<Value>(&outcome.stdout).map_or(0, |object| object["code"].as_u64().unwrap())
    };
    for version in [Value::Null, json!(""), json!("0.1.0"), json!("0.3.1"), json!("9.9.9")] {
        assert_eq!(code("CHECK", version.clone()), 1, "{version}");
    }
    assert_eq!(code("CHECK", json!("0.4.0")), 999, "allowed, but there is no such container");
    for command in ["STATUS", "GC"] {
        for version in [Value::Null, json!("0.4.0"), json!("1.0.0"), json!("1.1.1")] {
            assert_eq!(code(command, version.clone()), 1, "{command} {version}");
        }
        assert_eq!(code(command, json!("v1.1.0")), 6);
        assert_eq!(code(command, json!("1.1.0")), 0);
    }
}

#[test]
fn variables_that_are_not_utf8_survive() {
    let bench = Bench::new();
    let odd = OsStr::from_bytes(b"a\xff");
    let call =
        bench.call("ADD").env("ODD", odd).env("CNI_NETNS", odd).env("CNI_IFNAME", odd).env("CNI_ARGS", odd);
    call.run().result();
    let asked = bench.asked().remove(0);
    for key in ["ODD", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        assert_eq!(asked.env(key).unwrap(), r"a\xff", "{key}");
    }
    bench.call("DEL").env("CNI_IFNAME", odd).run().silent();
    assert_eq!(bench.state_names(), [""; 0]);
    bench.call("ADD").env("CNI_CONTAINERID", odd).run().error(4);
    bench.call("ADD").env("CNI_COMMAND", odd).run().error(4);
}

#[test]
fn closed_standard_streams_are_no_panic() {
    let bench = Bench::new();
    let mut child = bench.call("ADD").start();
    drop((child.stdout.take(), child.stderr.take()));
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
}
