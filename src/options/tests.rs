//! The contract of options as tables: every flag, every rule of syntax and environment, every message.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::TxChecksum;

type Outcome = Result<Configured, OptionsError>;

fn invoke(argv: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, OptionsError> {
    let argv = std::iter::once("flanneld").chain(argv.iter().copied()).map(OsString::from);
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    read(argv, environment, &nobody())
}

/// There is no configuration file here, and whoever asks for facts fails the test.
fn nobody() -> Outside<'static> {
    Outside {
        read: &|_| Err("nothing is read here".to_owned()),
        facts: Arc::new(|| panic!("facts gathered")),
    }
}

fn run(argv: &[&str], environment: &[(&str, &str)]) -> Outcome {
    match invoke(argv, environment)? {
        Invocation::Run(configured) => Ok(*configured),
        other => panic!("not a run: {other:?}"),
    }
}

fn options(argv: &[&str]) -> Options {
    run(argv, &[]).unwrap().options
}

fn message(argv: &[&str], environment: &[(&str, &str)]) -> String {
    run(argv, environment).unwrap_err().to_string()
}

fn effective(configured: &Configured, name: &str) -> (String, Origin) {
    let found = configured.effective.iter().find(|option| option.name == name).unwrap();
    (found.value.clone(), found.origin)
}

/// Each flag, its default, a value that can be given, and how that is shown.
const CONTRACT: &[(&str, &str, &str, &str)] = &[
    ("config-file", "", "", ""),
    ("etcd-api", "auto", "both", "both"),
    ("etcd-cafile", "", "/etc/ca.pem", "/etc/ca.pem"),
    ("etcd-certfile", "", "/etc/cert.pem", "/etc/cert.pem"),
    (
        "etcd-endpoints",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "https://a:1,https://b:2",
        "https://a:1,https://b:2",
    ),
    ("etcd-keyfile", "", "/etc/key.pem", "/etc/key.pem"),
    ("etcd-password", "", "hunter2", "***"),
    ("etcd-prefix", "/coreos.com/network", "/x", "/x"),
    ("etcd-username", "", "bob", "bob"),
    ("firewall", "auto", "nftables", "nftables"),
    ("healthz-ip", "0.0.0.0", "127.0.0.1", "127.0.0.1"),
    ("healthz-port", "0", "0x1F90", "8080"),
    ("iface", "", "wg0", "wg0"),
    ("iface-can-reach", "", "10.0.0.1", "10.0.0.1"),
    ("iface-regex", "", "^10\\.", "^10\\."),
    ("ip-blackhole-route", "false", "F", "false"),
    ("ip-masq", "false", "0", "false"),
    ("ip-masq-exclude", "", "192.168.0.0/16,172.16.0.0/12", "192.168.0.0/16,172.16.0.0/12"),
    ("ip-masq-fully-random-disable", "false", "T", "true"),
    ("iptables-forward-rules", "true", "False", "false"),
    ("iptables-resync", "5", "1_0", "10"),
    (
        "kube-annotation-prefix",
        "flannel.alpha.coreos.com",
        "flannel.alpha.coreos.com",
        "flannel.alpha.coreos.com",
    ),
    ("kube-api-url", "", "", ""),
    ("kube-subnet-mgr", "false", "FALSE", "false"),
    ("kubeconfig-file", "", "", ""),
    ("log_backtrace_at", "", "main.go:7", "main.go:7"),
    (
        "net-config-path",
        "/etc/kube-flannel/net-conf.json",
        "/etc/kube-flannel/net-conf.json",
        "/etc/kube-flannel/net-conf.json",
    ),
    ("peer-grace", "3600", "0", "0"),
    ("public-ip", "", "10.8.0.111", "10.8.0.111"),
    ("public-ipv6", "", "", ""),
    ("seed-config", "false", "F", "false"),
    ("set-node-network-unavailable", "true", "t", "true"),
    ("subnet-file", "/run/flannel/subnet.env", "/tmp/s", "/tmp/s"),
    ("subnet-lease-renew-margin", "60", "0b11", "3"),
    ("subnet-lease-ttl", "86400", "7_200", "7200"),
    ("v", "0", "4", "4"),
    ("version", "false", "false", "false"),
    ("vmodule", "", "a=1", "a=1"),
    ("vxlan-tx-checksum", "auto", "off", "off"),
];

/// Flags that are refused without their other half.
const COMPANIONS: &[(&str, &str)] = &[
    ("etcd-certfile", "-etcd-keyfile=k"),
    ("etcd-keyfile", "-etcd-certfile=c"),
    ("etcd-username", "-etcd-password=p"),
    ("etcd-password", "-etcd-username=u"),
];

fn companion(name: &str) -> Option<&'static str> {
    COMPANIONS.iter().find(|(flag, _)| *flag == name).map(|(_, word)| *word)
}

#[test]
fn the_table_is_the_contract() {
    let names: Vec<_> = flags::ALL.iter().map(|flag| flag.name).collect();
    let contract: Vec<_> = CONTRACT.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, contract);
}

#[test]
fn without_anything_every_option_has_its_default() {
    let configured = run(&[], &[]).unwrap();
    for (name, default, ..) in CONTRACT {
        assert_eq!(effective(&configured, name), ((*default).to_owned(), Origin::Default), "{name}");
    }
}

#[test]
fn every_option_is_read_from_the_command_line_in_every_form() {
    for (name, _, given, shown) in CONTRACT {
        let is_bool = flags::find(name).unwrap().is_bool();
        let joined = [format!("-{name}={given}"), format!("--{name}={given}")].map(|word| vec![word]);
        let split = [format!("-{name}"), format!("--{name}")].map(|word| vec![word, (*given).to_owned()]);
        for words in joined.into_iter().chain(split.into_iter().filter(|_| !is_bool)) {
            let argv: Vec<_> = words.iter().map(String::as_str).chain(companion(name)).collect();
            let configured = run(&argv, &[]).unwrap();
            assert_eq!(effective(&configured, name), ((*shown).to_owned(), Origin::CommandLine), "{argv:?}");
        }
    }
}

#[test]
fn every_option_but_version_is_read_from_the_environment() {
    for (name, default, given, shown) in CONTRACT {
        let variable = flags::find(name).unwrap().variable();
        let argv: Vec<_> = companion(name).into_iter().collect();
        let configured = run(&argv, &[(&variable, given)]).unwrap();
        let expected = match given.is_empty() || *name == "version" {
            true => ((*default).to_owned(), Origin::Default),
            false => ((*shown).to_owned(), Origin::Environment),
        };
        assert_eq!(effective(&configured, name), expected, "{variable}");
    }
}

#[test]
fn the_command_line_wins_over_the_environment() {
    let configured = run(
        &["-etcd-prefix=/a", "-iface=x"],
        &[("FLANNELD_ETCD_PREFIX", "/b"), ("FLANNELD_IFACE", "y"), ("FLANNELD_V", "3")],
    )
    .unwrap();
    assert_eq!(configured.options.etcd.prefix.as_str(), "/a");
    assert_eq!(configured.options.iface.ifaces, ["x"]);
    assert_eq!(configured.options.verbosity, 3);
}

#[test]
fn an_unread_environment_value_is_not_judged_when_the_command_line_wins() {
    assert_eq!(run(&["-v=1"], &[("FLANNELD_V", "x")]).unwrap().options.verbosity, 1);
}

#[test]
fn repeated_scalars_end_with_the_last_and_lists_grow() {
    let options =
        options(&["-v=1", "-iface", "a", "-v", "2", "--iface=b", "-iface-regex=r1", "-iface-regex=r2"]);
    assert_eq!(options.verbosity, 2);
    assert_eq!(options.iface.ifaces, ["a", "b"]);
    assert_eq!(options.iface.regexes, ["r1", "r2"]);
}

#[test]
fn a_variable_gives_exactly_one_element_of_a_list() {
    let options = run(&[], &[("FLANNELD_IFACE", "a,b"), ("FLANNELD_IFACE_REGEX", "x,y")]).unwrap().options;
    assert_eq!(options.iface.ifaces, ["a,b"]);
    assert_eq!(options.iface.regexes, ["x,y"]);
}

#[test]
fn an_empty_variable_is_unset() {
    assert_eq!(run(&[], &[("FLANNELD_ETCD_PREFIX", "")]).unwrap(), run(&[], &[]).unwrap());
}

#[test]
fn bools_need_no_value_and_take_one_only_behind_an_equals_sign() {
    assert!(!options(&["-ip-masq-fully-random-disable"]).firewall.fully_random);
    assert!(!options(&["--ip-masq-fully-random-disable=True"]).firewall.fully_random);
    assert!(
        options(&["-ip-masq-fully-random-disable", "-ip-masq-fully-random-disable=0"]).firewall.fully_random
    );
}

/// Old versions had them, or one range of versions.
#[test]
fn flags_that_neither_version_knows_are_unknown_here_too() {
    for name in ["remote", "listen", "networks", "remote-certfile", "subnet-dir", "use-multi-cluster-cidr"] {
        let text = message(&[&format!("-{name}=x")], &[]);
        assert!(text.starts_with(&format!("unknown option -{name}: ")), "{text}");
        assert_eq!(run(&[&format!("-{name}")], &[]).unwrap_err().exit_code(), 2, "{name}");
    }
}

/// Those of Kubernetes mode and of other backends, of systemd, and the proxies of Go's client for etcd v2.
#[test]
fn variables_that_are_not_ours_change_nothing() {
    let others = [
        "NODE_NAME",
        "POD_NAME",
        "POD_NAMESPACE",
        "EVENT_QUEUE_DEPTH",
        "CONT_WHEN_CACHE_NOT_READY",
        "WIREGUARD_KEY_FILE",
        "ACCESS_KEY_ID",
        "ACCESS_KEY_SECRET",
        "NOTIFY_SOCKET",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ];
    let others = others.map(|name| (name, "x"));
    assert_eq!(run(&[], &others).unwrap(), run(&[], &[]).unwrap());
}

/// A default must leave the word to the network config, which the same value typed by somebody does not.
#[test]
fn a_default_tx_checksum_is_no_choice() {
    assert_eq!(options(&[]).tx_checksum, None);
    assert_eq!(options(&["-vxlan-tx-checksum=auto"]).tx_checksum, Some(TxChecksum::Auto));
}

#[test]
fn messages_name_the_option_as_typed_and_the_cure() {
    for (argv, expected) in [
        (&["-ifac=x"][..], "unknown option -ifac: did you mean -iface?"),
        (&["--etcd-pasword=hunter2"], "unknown option -etcd-pasword: did you mean -etcd-password?"),
        (&["-listen", "x"], "unknown option -listen: flanneld -help lists all options"),
        (&["-=x"], "unknown option -: flanneld -help lists all options"),
        (&["---v=1"], "unknown option --v: flanneld -help lists all options"),
        (&["-iface"], "-iface needs a value: write -iface=VALUE"),
        (
            &["-ip-masq", "true", "-iface", "x"],
            "unexpected word \"true\" after -ip-masq: write -ip-masq=true",
        ),
        (&["-ip-masq=yes"], "-ip-masq=yes: expected true or false"),
        (&["-firewall=ufw"], "-firewall=ufw: expected auto, nftables or iptables"),
        (&["-vxlan-tx-checksum=no"], "-vxlan-tx-checksum=no: expected auto, keep, on or off"),
        (&["-etcd-api=v4"], "-etcd-api=v4: expected auto, v2, v3 or both"),
        (
            &["-ip-masq-exclude=10.0.0.0/8,x"],
            "-ip-masq-exclude=10.0.0.0/8,x: expected IPv4 CIDRs such as 192.168.0.0/16, separated by commas",
        ),
        (&["-ip-masq="], "-ip-masq=: expected true or false"),
        (&["-v=much"], "-v=much: expected an integer up to 2147483647 (int)"),
        (&["-healthz-port=65536"], "-healthz-port=65536: expected an integer up to 65535 (port)"),
        (&["-healthz-ip=here"], "-healthz-ip=here: expected an IP address"),
        (&["-iptables-resync=0"], "-iptables-resync=0: expected an integer from 1 to 86400 (seconds)"),
        (&["-iptables-resync=-5"], "-iptables-resync=-5: expected an integer from 1 to 86400 (seconds)"),
        (
            &["-subnet-lease-renew-margin=0"],
            "-subnet-lease-renew-margin=0: expected an integer from 1 to 1439 (minutes)",
        ),
        (
            &["-subnet-lease-renew-margin", "1440"],
            "-subnet-lease-renew-margin=1440: expected an integer from 1 to 1439 (minutes)",
        ),
        (
            &["-subnet-lease-ttl=9"],
            "-subnet-lease-ttl=9: expected an integer from 10 to 9000000000 (seconds)",
        ),
        (
            &["-subnet-lease-ttl=60", "-subnet-lease-renew-margin=1"],
            "subnet-lease-renew-margin=1 (minutes, command line) must be shorter than subnet-lease-ttl=60 (seconds, \
             command line): give a smaller margin or a longer ttl",
        ),
        (&["-public-ip=fd00::1"], "-public-ip=fd00::1: expected an IPv4 address"),
        (&["-iface-can-reach=gw"], "-iface-can-reach=gw: expected an IPv4 address"),
        (&["-iface="], "-iface=: expected an interface name or IPv4 address"),
        (&["-subnet-file=/run/flannel/"], "-subnet-file=/run/flannel/: expected the path of a file"),
        (&["-etcd-prefix="], "-etcd-prefix=: expected a key such as /coreos.com/network"),
        (
            &["-etcd-endpoints=https://bob:hunter2@a:1"],
            "-etcd-endpoints=https://***@a:1: expected URLs without user and password (give etcd-username and etcd-password)",
        ),
        (
            &["-etcd-endpoints=10.0.0.1:2379"],
            "-etcd-endpoints=10.0.0.1:2379: expected URLs such as https://10.8.0.101:2379, separated by commas without blanks",
        ),
        (
            &["-etcd-endpoints=http://a:1, http://b:1"],
            "-etcd-endpoints=http://a:1, http://b:1: expected URLs such as https://10.8.0.101:2379, separated by commas without blanks",
        ),
        (&["-etcd-certfile=c"], "etcd-certfile needs etcd-keyfile as well"),
        (&["-etcd-keyfile=k"], "etcd-keyfile needs etcd-certfile as well"),
        (&["-etcd-username=u"], "etcd-username needs etcd-password as well"),
        (&["-etcd-password=hunter2"], "etcd-password needs etcd-username as well"),
    ] {
        assert_eq!(message(argv, &[]), expected, "{argv:?}");
    }
}

#[test]
fn a_bad_variable_is_an_error_that_names_it() {
    for (name, value, expected) in [
        ("FLANNELD_IP_MASQ", "on", "FLANNELD_IP_MASQ=on: expected true or false"),
        ("FLANNELD_V", "x", "FLANNELD_V=x: expected an integer up to 2147483647 (int)"),
        ("FLANNELD_PUBLIC_IP", "x", "FLANNELD_PUBLIC_IP=x: expected an IPv4 address"),
    ] {
        assert_eq!(message(&[], &[(name, value)]), expected);
    }
}

#[test]
fn an_unknown_variable_of_ours_is_one_warning() {
    let environment = [
        ("FLANNELD_ETCD_ENDPOINT", "x"),
        ("FLANNELD_PORT", "tcp://1"),
        ("PATH", "/bin"),
        ("FLANNELD_VERSION", "1"),
    ];
    let warnings: Vec<_> = run(&[], &environment).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.contains(
        &"environment variable FLANNELD_ETCD_ENDPOINT sets no option: did you mean FLANNELD_ETCD_ENDPOINTS?".to_owned()
    ));
    assert!(warnings.contains(
        &"environment variable FLANNELD_PORT sets no option: flanneld -help lists all options".to_owned()
    ));
    assert_eq!(warnings.iter().filter(|text| text.contains("variable")).count(), 2);
}

/// What is not built, with a value that is refused. Shrinks as features arrive.
const NOT_BUILT: &[(&str, &str)] = &[
    ("kube-annotation-prefix", "x"),
    ("kube-api-url", "https://k:6443"),
    ("kube-subnet-mgr", "true"),
    ("kubeconfig-file", "/k"),
    ("net-config-path", "/x"),
    ("public-ipv6", "fd00::1"),
    ("set-node-network-unavailable", "false"),
];

#[test]
fn what_is_not_built_is_refused_with_option_value_and_what_is_supported() {
    for (name, value) in NOT_BUILT {
        let text = message(&[&format!("-{name}={value}")], &[]);
        let start = format!("-{name}={value} asks for something this version cannot do; supported is ");
        assert!(text.starts_with(&start) && text.len() > start.len(), "{text}");
    }
    assert_eq!(
        message(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "1")]),
        "FLANNELD_KUBE_SUBNET_MGR=true asks for something this version cannot do; supported is leases in etcd \
         (kube-subnet-mgr=false, see etcd-endpoints and etcd-prefix)"
    );
}

#[test]
fn a_default_that_is_not_built_is_one_warning_until_switched_off() {
    let not_built = |argv: &[&str]| {
        let warnings = run(argv, &[]).unwrap().warnings;
        warnings.iter().filter(|warning| matches!(warning, Warning::DefaultNotBuilt { .. })).count()
    };
    let expected = matches!(flags::IPTABLES_FORWARD_RULES.support, flags::Support::NotBuilt { .. });
    assert_eq!(not_built(&[]), usize::from(expected));
    assert_eq!(not_built(&["-iptables-forward-rules=false"]), 0);
}

#[test]
fn flags_of_gos_logging_library_are_accepted_with_a_warning() {
    for (word, expected) in [
        (
            "-vmodule=a=1",
            "-vmodule=a=1 has no effect: it steers the logging library of the Go daemon (use -v=N)",
        ),
        (
            "-log_backtrace_at=main.go:7",
            "-log_backtrace_at=main.go:7 has no effect: it steers the logging library of the Go daemon (use -v=N)",
        ),
    ] {
        let warnings = run(&[word], &[]).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.to_string() == expected), "{warnings:?}");
    }
}

#[test]
fn exit_codes_tell_a_wrong_command_line_from_an_impossible_wish() {
    for (argv, code) in [
        (&["-nonsense"][..], 2),
        (&["stray"], 2),
        (&["-iface"], 2),
        (&["-ip-masq", "true"], 2),
        (&["-subnet-lease-renew-margin=1440"], 1),
        (&["-kube-subnet-mgr"], 1),
        (&["-etcd-certfile=c"], 1),
        (&["-subnet-lease-ttl=10", "-subnet-lease-renew-margin=1"], 1),
    ] {
        assert_eq!(run(argv, &[]).unwrap_err().exit_code(), code, "{argv:?}");
    }
}

#[test]
fn the_margin_nobody_gave_fits_into_a_short_ttl() {
    for (argv, ttl, margin) in [
        (&[][..], 86_400, 3600),
        (&["-subnet-lease-ttl=10"], 10, 5),
        (&["-subnet-lease-ttl=7200"], 7200, 3600),
        (&["-subnet-lease-ttl=7000"], 7000, 3500),
        (&["-subnet-lease-ttl=61", "-subnet-lease-renew-margin=1"], 61, 60),
        (&["-subnet-lease-renew-margin=1439"], 86_400, 86_340),
    ] {
        let times = options(argv).lease;
        assert_eq!(times.ttl, Duration::from_secs(ttl), "{argv:?}");
        assert_eq!(times.renew_margin, Duration::from_secs(margin), "{argv:?}");
    }
    let short = run(&["-subnet-lease-ttl=10"], &[]).unwrap();
    let shown = effective(&short, "subnet-lease-renew-margin");
    assert_eq!(shown, ("5s, half of subnet-lease-ttl".to_owned(), Origin::Default));
}

#[test]
fn health_is_served_only_with_a_port() {
    for (argv, listen) in [
        (&[][..], None),
        (&["-healthz-port=0"], None),
        (&["-healthz-port=-1"], None),
        (&["-healthz-port=8080"], Some("0.0.0.0:8080")),
        (&["-healthz-port=8080", "-healthz-ip="], Some("0.0.0.0:8080")),
        (&["-healthz-port=8080", "-healthz-ip=::1"], Some("[::1]:8080")),
    ] {
        assert_eq!(options(argv).health, listen.map(|text| text.parse().unwrap()), "{argv:?}");
    }
}

#[test]
fn the_role_s_command_line_is_understood() {
    let options = options(&[
        "-etcd-cafile=/var/lib/kubernetes/ca-etcd.pem",
        "-etcd-certfile=/var/lib/kubernetes/cert-etcd.pem",
        "-etcd-endpoints=https://10.8.0.101:2379",
        "-etcd-keyfile=/var/lib/kubernetes/cert-etcd-key.pem",
        "-etcd-prefix=/kubernetes-cluster/network",
        "-healthz-ip=0.0.0.0",
        "-healthz-port=0",
        "-iface=wg0",
        "-public-ip=10.8.0.111",
        "-subnet-file=/run/flannel/subnet.env",
    ]);
    let identity = options.etcd.tls.identity.unwrap();
    assert_eq!(options.etcd.tls.ca.unwrap().to_str(), Some("/var/lib/kubernetes/ca-etcd.pem"));
    assert_eq!(identity.cert.to_str(), Some("/var/lib/kubernetes/cert-etcd.pem"));
    assert_eq!(identity.key.to_str(), Some("/var/lib/kubernetes/cert-etcd-key.pem"));
    assert_eq!(options.etcd.endpoints, [Endpoint::parse("https://10.8.0.101:2379").unwrap()]);
    assert_eq!(options.etcd.prefix.as_str(), "/kubernetes-cluster/network");
    assert_eq!(options.iface.public_ip, Some("10.8.0.111".parse().unwrap()));
    assert_eq!(options.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
}

#[test]
fn verbosity_is_clamped() {
    for (text, level) in [("-1", 0), ("0", 0), ("4", 4), ("0x10", 16), ("1000", 255)] {
        assert_eq!(options(&["-v", text]).verbosity, level);
    }
}

#[test]
fn version_wins_over_everything_and_help_over_errors() {
    let version = Invocation::Version(concat!("v", env!("CARGO_PKG_VERSION")).to_owned());
    for argv in [&["-version"][..], &["--version=1"], &["-nonsense", "-version"], &["-v=x", "-h", "-version"]]
    {
        assert_eq!(invoke(argv, &[("FLANNELD_V", "x")]).unwrap(), version, "{argv:?}");
    }
    assert!(matches!(invoke(&["-version=false"], &[]), Ok(Invocation::Run(_))));
    for argv in [&["-h"][..], &["-help"], &["--help"], &["-nonsense", "-h"]] {
        assert!(matches!(invoke(argv, &[]), Ok(Invocation::Help(_))), "{argv:?}");
    }
}

#[test]
fn help_lists_every_option_in_order_with_type_text_and_default() {
    let Invocation::Help(help) = invoke(&["-h"], &[]).unwrap() else { panic!("no help") };
    assert!(help.starts_with("Usage: flanneld [OPTION]...\n"), "{help}");
    let mut rest = help.as_str();
    for flag in flags::ALL {
        let start =
            rest.find(&format!("  --{}", flag.name)).unwrap_or_else(|| panic!("{} in {rest}", flag.name));
        rest = rest.split_at(start).1;
        assert!(rest.contains(flag.help), "{}", flag.name);
    }
    for part in [
        "--etcd-prefix <string>\n          key below which etcd holds the network config and the leases (default \"/coreos.com/network\")",
        "--iptables-resync <seconds>",
        "--ip-masq[=<bool>]",
        "(default 5)",
        "(default true)",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

#[test]
fn a_secret_is_shown_nowhere() {
    let argv = ["-etcd-username=bob", "-etcd-password=hunter2"];
    let configured = run(&argv, &[]).unwrap();
    assert_eq!(configured.options.etcd.credentials.as_ref().unwrap().password.expose(), "hunter2");
    assert_eq!(configured.given(), "etcd-password=*** (command line), etcd-username=bob (command line)");
    assert!(!format!("{configured:?}").contains("hunter2"));
    for words in [
        &["-etcd-password=hunter2"][..],
        &["-etcd-password=", "hunter2"],
        &["-etcd-pasword=hunter2"],
        &["-etcd-endpoints=http://bob:hunter2@a:1/x"],
        &["-etcd-endpoints=bob:hunter2@a:1"],
        &["-etcd-endpoints=http://a:1,http://bob:hunt,er2@a"],
    ] {
        let error = run(words, &[]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunt"), "{error:?}");
    }
}

#[test]
fn what_is_not_text_is_refused_without_showing_it() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(vec![b'-', b'v', 0xff]);
    let error = read(["flanneld".into(), broken()], [], &nobody()).unwrap_err();
    assert_eq!(error.to_string(), "word 1 of the command line is not valid UTF-8");
    let error = read(["flanneld".into()], [("FLANNELD_IFACE".into(), broken())], &nobody()).unwrap_err();
    assert_eq!(error.to_string(), "environment variable FLANNELD_IFACE is not valid UTF-8");
    assert!(read(["flanneld".into()], [(broken(), broken())], &nobody()).is_ok());
    assert!(read([], [], &nobody()).is_ok());
}

proptest! {
    #[test]
    fn any_command_line_is_answered(words in prop::collection::vec(word(), 0..6), value in ".*") {
        let argv: Vec<_> = words.iter().map(String::as_str).collect();
        let _ = invoke(&argv, &[("FLANNELD_ETCD_ENDPOINTS", value.as_str()), ("FLANNELD_X", value.as_str())]);
    }

    #[test]
    fn no_value_changes_another_option(name in 0..CONTRACT.len(), value in "[a-z0-9./:-]{0,12}") {
        let (name, ..) = CONTRACT[name];
        if let Ok(Invocation::Run(configured)) = invoke(&[&format!("-{name}={value}")], &[]) {
            let given = configured.effective.iter().filter(|option| option.origin != Origin::Default);
            prop_assert_eq!(given.map(|option| option.name).collect::<Vec<_>>(), [name]);
        }
    }
}

/// Words that are more often nearly right than not.
fn word() -> impl Strategy<Value = String> {
    let name = (0..CONTRACT.len()).prop_map(|index| CONTRACT[index].0.to_owned());
    prop_oneof![
        name.clone().prop_map(|name| format!("-{name}")),
        (name.clone(), ".*").prop_map(|(name, value)| format!("--{name}={value}")),
        (name, "[0-9a-z_:/,@]*").prop_map(|(name, value)| format!("-{name}={value}")),
        ".*",
        Just("--".to_owned()),
    ]
}
