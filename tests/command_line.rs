//! The process as a shell sees it: what it writes where, and what it exits with. No daemon is started.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;

const VARIABLES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/fixtures/role/readme-variables.yml");
const NETWORK_CONFIG: &str = include_str!("../netns-tests/fixtures/role/etcd-config.json");

/// Exit code, stdout, stderr.
fn flanneld(words: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    let output = command.args(words).env_clear().envs(environment.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_and_version_go_to_stderr_and_are_no_failure() {
    for word in ["-h", "-help", "--help"] {
        let (code, out, err) = flanneld(&[word], &[]);
        assert_eq!((code, out.as_str()), (0, ""), "{word}");
        let usage = format!("Usage: {} [OPTION]...\n", env!("CARGO_BIN_EXE_flanneld"));
        assert!(err.starts_with(&usage), "{err}");
    }
    let version = (0, String::new(), format!("v{}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(flanneld(&["-version"], &[]), version);
    assert_eq!(flanneld(&["--version=1"], &[("FLANNELD_V", "x")]), version);
    // The variable has no effect: the daemon would start, were it not for the other one.
    let (code, _, err) = flanneld(&[], &[("FLANNELD_VERSION", "true"), ("FLANNELD_V", "x")]);
    assert_eq!((code, err.starts_with("flanneld: FLANNELD_V=x: expected an integer")), (1, true), "{err}");
}

#[test]
fn what_is_wrong_is_one_line_on_stderr_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("-config-file={}", path.display())
    };
    let here = |path: &str| format!("-config-file={}", folder.path().join(path).display());
    let empty = file("empty.yml", b"");
    let typo = file("typo.yml", b"ifac: wg0\n");
    let binary = file("binary.yml", b"v: \xff\n");
    let (missing, directory) = (here("missing.yml"), here("."));
    for (word, code, cause) in [
        ("-nonsense", 2, "unknown option -nonsense"),
        ("stray", 2, "unexpected word \"stray\""),
        ("-iface", 2, "-iface needs a value"),
        ("-v=x", 1, "-v=x: expected an integer"),
        (
            "-subnet-lease-renew-margin=0",
            1,
            "-subnet-lease-renew-margin=0: expected an integer from 1 to 1439",
        ),
        ("-kube-subnet-mgr", 1, "-kube-subnet-mgr=true asks for something this version cannot do"),
        (&missing, 1, "missing.yml: cannot be read: No such file"),
        (&directory, 1, ".: cannot be read: Is a directory"),
        (&binary, 1, "binary.yml: cannot be read: it is not text in UTF-8"),
        (&empty, 1, "empty.yml: is empty"),
        (
            &typo,
            1,
            "typo.yml: line 1: ifac is neither an option nor a variable of the role: did you mean iface?",
        ),
    ] {
        let (exit, out, err) = flanneld(&[word], &[]);
        assert_eq!((exit, out.as_str(), err.lines().count()), (code, "", 1), "{word}: {err}");
        assert!(err.starts_with("flanneld: ") && err.contains(cause), "{word}: {err}");
    }
}

#[test]
fn render_prints_on_stdout_what_the_role_would_install() {
    let (code, out, err) =
        flanneld(&["render", "--config-file", VARIABLES, "network-config", "-public-ip=10.8.0.1"], &[]);
    assert_eq!((code, out.as_str()), (2, ""), "the word stands first or last");
    assert!(err.contains("unit, conflist, options, network-config"), "{err}");
    // This host may have no tap0, whose address is asked for otherwise.
    let words = ["render", "network-config", "--config-file", VARIABLES, "-public-ip=10.8.0.1"];
    assert_eq!(flanneld(&words, &[]), (0, NETWORK_CONFIG.to_owned(), String::new()));
    let (code, out, err) =
        flanneld(&["render", "-public-ip=10.8.0.1", "options"], &[("FLANNELD_CONFIG_FILE", VARIABLES)]);
    assert_eq!((code, err.as_str()), (0, ""));
    for line in
        ["iface=tap0 (configuration file, line ", "public-ip=10.8.0.1 (command line)", "v=0 (default)"]
    {
        assert!(out.lines().any(|found| found.starts_with(line)), "{out}");
    }
}

#[test]
fn a_full_disk_is_a_failure_and_a_reader_that_has_read_enough_is_none() {
    let ends_with = |out: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.args(["render", "network-config", "--config-file", VARIABLES, "-public-ip=10.8.0.1"]);
        let output = command.env_clear().stdout(out).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, err) = ends_with(full.into());
    assert_eq!(code, Some(1));
    assert!(err.starts_with("flanneld: cannot write to standard output: No space left"), "{err}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(ends_with(writer.into()), (Some(0), String::new()));
}
