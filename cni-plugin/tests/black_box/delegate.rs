//! Contract, section 8: finding and running the delegate, and what can come of it.

use crate::common::{Bench, fake_delegate};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

/// What ADD says when the delegate ends like this.
fn refused(behaviour: Value, code: u64) -> Value {
    let bench = Bench::new();
    bench.behave(json!({"ADD": behaviour}));
    bench.add().error(code)
}

#[test]
fn an_error_object_is_passed_on_unchanged() {
    let error = refused(
        json!({"stdout": r#"{"cniVersion":"0.1.0","code":110,"msg":"m","details":"d"}"#, "exit": 3}),
        110,
    );
    assert_eq!(error, json!({"cniVersion": "0.3.1", "code": 110, "msg": "m", "details": "d"}));
    let error = refused(json!({"stdout": r#"{"code":11,"msg":"m"}"#, "exit": 1}), 11);
    assert_eq!(error, json!({"cniVersion": "0.3.1", "code": 11, "msg": "m"}));
}

#[test]
fn a_failure_without_an_error_object_is_999_and_quotes_what_was_said() {
    for (behaviour, quoted) in [
        (json!({"stdout": "", "stderr": "on stderr", "exit": 1}), "on stderr"),
        (json!({"stdout": "no json", "exit": 1}), "no json"),
        (json!({"stdout": "{}", "stderr": "also", "exit": 1}), "also"),
        (json!({"stdout": "", "exit": 7}), "7"),
        (json!({"stdout": "", "exit": 7}), "printed nothing"),
        (json!({"stdout": "", "signal": 9}), "signal: 9"),
    ] {
        let error = refused(behaviour, 999);
        assert!(error["msg"].as_str().unwrap().contains(quoted), "{quoted}: {error}");
    }
}

#[test]
fn a_delegate_that_cannot_be_started_is_999_with_the_system_s_words() {
    let bench = Bench::new();
    fs::write(bench.path("bin/plain"), "not executable").unwrap();
    let conf = bench.conf(json!({"delegate": {"type": "plain"}}));
    assert!(bench.call("ADD").conf(&conf).run().refused(999).contains("Permission denied"));
    fs::set_permissions(bench.path("bin/plain"), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(bench.call("ADD").conf(&conf).run().refused(999).contains("Exec format"));
}

#[test]
fn names_that_are_none() {
    let bench = Bench::new();
    for name in ["", "../bin/bridge", "/bin/true"] {
        let conf = bench.conf(json!({"delegate": {"type": name}}));
        bench.call("ADD").conf(&conf).run().error(999);
    }
    assert_eq!((bench.commands().as_str(), bench.state_names().len()), ("", 0));
}

#[test]
fn the_first_regular_file_wins_executable_or_not() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("first/bridge")).unwrap();
    let search = |directories: &[&str]| {
        let path: Vec<String> =
            directories.iter().map(|name| bench.path(name).to_str().unwrap().to_owned()).collect();
        bench.call("ADD").env("CNI_PATH", path.join(":"))
    };
    search(&["nowhere", "first", "bin"]).run().result();
    let bin = bench.path("bin/bridge");
    assert_eq!(bench.asked()[0].argv(), [bin.to_str().unwrap()]);
    fs::create_dir(bench.path("second")).unwrap();
    fs::write(bench.path("second/bridge"), "").unwrap();
    assert!(search(&["second", "bin"]).run().refused(999).contains("Permission denied"));
}

#[test]
fn an_empty_element_of_the_path_is_not_the_current_directory() {
    let bench = Bench::new();
    let here = |path: &str| {
        let call = bench.call("ADD").env("CNI_PATH", path);
        call.under(&["env".into(), "-C".into(), bench.path("bin").into()]).run()
    };
    assert!(here(":").refused(999).contains("not found in CNI_PATH []"));
    here(":.").result();
}

#[test]
fn the_environment_is_inherited_but_for_the_command() {
    let bench = Bench::new();
    let args = "IgnoreUnknown=1;IP=10.1.17.9;MAC=0a:00:00:00:00:01";
    bench.call("ADD").env("CNI_ARGS", args).env("EXTRA", "kept").run().result();
    bench.call("DEL").env("CNI_ARGS", args).env("EXTRA", "kept").run().silent();
    for (asked, command) in bench.asked().iter().zip(["ADD", "DEL"]) {
        for (key, value) in [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "pod"),
            ("CNI_NETNS", "/run/netns/nowhere"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
            ("EXTRA", "kept"),
            ("CNI_PATH", bench.path("bin").to_str().unwrap()),
        ] {
            assert_eq!(asked.env(key).as_deref(), Some(value), "{key}");
        }
    }
}

#[test]
fn stderr_is_forwarded_on_success_and_on_failure() {
    for exit in [0, 1] {
        let bench = Bench::new();
        bench.behave(
            json!({"ADD": {"stderr": "the delegate speaks\n", "stdout": "{\"code\":100}", "exit": exit}}),
        );
        let outcome = bench.add();
        assert_eq!(outcome.stderr, "the delegate speaks\n");
        assert!(!outcome.stdout.contains("speaks"));
    }
}

#[test]
fn full_pipes_in_all_three_directions_do_not_block() {
    let bench = Bench::new();
    bench.behave(json!({"ADD": {"flood": 1_000_000}}));
    let conf = bench.conf(json!({"delegate": {"padding": "y".repeat(1_000_000)}}));
    let outcome = bench.call("ADD").conf(&conf).run();
    assert_eq!(outcome.result()["filler"].as_str().unwrap().len(), 1_000_000);
    assert_eq!(outcome.stderr.len(), 1_000_000);
    bench.behave(json!({"DEL": {"flood": 1_000_000, "deaf": true}}));
    bench.del().silent();
}

#[test]
fn a_delegate_that_does_not_read_is_no_error() {
    let bench = Bench::new();
    bench.behave(json!({"*": {"deaf": true}}));
    let conf = bench.conf(json!({"delegate": {"padding": "y".repeat(300_000)}}));
    bench.call("ADD").conf(&conf).run().result();
}

#[test]
fn a_file_that_is_being_written_gets_another_chance() {
    let bench = Bench::new();
    fs::copy(fake_delegate(), bench.path("bin/copied")).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(bench.path("bin/copied")).unwrap();
    let conf = bench.conf(json!({"delegate": {"type": "copied"}}));
    let mut child = bench.call("ADD").conf(&conf).start();
    let mut said = [0; 1];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    drop(writer);
    let outcome = crate::common::Outcome::new(&child.wait_with_output().unwrap());
    outcome.result();
    assert!(outcome.stderr.contains("being written"), "{}", outcome.stderr);
    assert_eq!(bench.asked_of("copied").len(), 1, "the delegate ran once");
}

#[test]
fn symbolic_links_are_followed() {
    let bench = Bench::new();
    symlink("bridge", bench.path("bin/linked")).unwrap();
    bench.call("ADD").conf(&bench.conf(json!({"delegate": {"type": "linked"}}))).run().result();
    assert_eq!(bench.asked_of("linked").len(), 1);
}
