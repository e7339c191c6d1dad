//! Configuration files end to end: every option, every variable of the role, every kind of mistake.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::facts::Facts;
use super::*;
use crate::options::flags::{self, Kind};
use crate::options::{Configured, Invocation, OptionsError, Origin, Outside, What, read, render};

const README: &str = include_str!("../../../netns-tests/fixtures/role/readme-variables.yml");
const README_USER: &str = include_str!("../../../netns-tests/fixtures/role/readme-user-settings.yml");
const VARS: &str = include_str!("../../../netns-tests/fixtures/role/flanneld.vars.yml");
const UNIT: &str = include_str!("../../../netns-tests/fixtures/role/flanneld.service");
const UNIT_POST: &str = include_str!("../../../netns-tests/fixtures/role/flanneld-execstartpost.service");
const CONFLIST: &str = include_str!("../../../netns-tests/fixtures/role/10-flannel.conflist");
const NETWORK_CONFIG: &str = include_str!("../../../netns-tests/fixtures/role/etcd-config.json");

fn host() -> Facts {
    Facts::of_a_worker()
}

/// Words, variables and the text of the file that `-config-file=F` names.
struct Case<'a> {
    words: Vec<&'a str>,
    variables: &'a [(&'a str, &'a str)],
    text: &'a str,
}

impl Case<'_> {
    fn argv(&self) -> Vec<OsString> {
        let words = ["-config-file=F"].into_iter().chain(self.words.iter().copied());
        words.map(OsString::from).collect()
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        self.variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn run(&self) -> Result<Configured, OptionsError> {
        let argv = std::iter::once("flanneld".into()).chain(self.argv());
        match with(self.text, &|outside| read(argv.clone(), self.environment(), outside))? {
            Invocation::Run(configured) => Ok(*configured),
            other => panic!("not a run: {other:?}"),
        }
    }

    fn render(&self, what: What) -> Result<String, OptionsError> {
        with(self.text, &|outside| render(what, self.argv(), self.environment(), outside))
    }
}

fn with<T>(text: &str, work: &dyn Fn(&Outside<'_>) -> T) -> T {
    let read = |path: &Path| {
        assert_eq!(path, Path::new("F"));
        Ok(text.to_owned())
    };
    work(&Outside { read: &read, facts: Arc::new(host) })
}

fn case(text: &str) -> Case<'_> {
    Case { words: Vec::new(), variables: &[], text }
}

fn run(text: &str) -> Configured {
    case(text).run().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Name, value and origin of what the file gives.
fn given(text: &str) -> BTreeMap<&'static str, (String, Origin)> {
    let effective = run(text).effective.into_iter();
    let given = effective.filter(|option| option.origin != Origin::Default && option.name != "config-file");
    given.map(|option| (option.name, (option.value, option.origin))).collect()
}

fn values(text: &str) -> Vec<(&'static str, String)> {
    given(text).into_iter().map(|(name, (value, _))| (name, value)).collect()
}

fn message(text: &str) -> String {
    let message = case(text).run().unwrap_err().to_string();
    message.strip_prefix("configuration file F: ").unwrap_or(&message).to_owned()
}

fn listed(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

// --- names of options as keys ---

#[test]
fn every_option_but_two_is_a_key() {
    for flag in flags::ALL {
        let (value, shown) = match flag.kind {
            _ if ["config-file", "version"].contains(&flag.name) => {
                let expected = format!(
                    "line 1: {} cannot be given in a configuration file: give it on the command line",
                    flag.name
                );
                assert_eq!(message(&format!("{}: 'true'\n", flag.name)), expected);
                continue;
            }
            _ if matches!(flag.support, flags::Support::NotBuilt { .. }) => {
                let flags::Support::NotBuilt { off, .. } = flag.support else { continue };
                (format!("'{off}'"), off)
            }
            Kind::Secret => ("hunter2".to_owned(), "***"),
            Kind::Bool { .. } => ("yes".to_owned(), "true"),
            Kind::Int { .. } => ("30".to_owned(), "30"),
            Kind::List => ("[a, b]".to_owned(), "a,b"),
            Kind::Urls { .. } => ("[https://a:1, https://b:2]".to_owned(), "https://a:1,https://b:2"),
            Kind::Text { .. } => match flag.name {
                "etcd-api" => ("v3".to_owned(), "v3"),
                "firewall" => ("nftables".to_owned(), "nftables"),
                "healthz-ip" | "iface-can-reach" | "public-ip" => ("10.8.0.9".to_owned(), "10.8.0.9"),
                "ip-masq-exclude" => ("[10.0.0.0/8, 172.16.0.0/12]".to_owned(), "10.0.0.0/8,172.16.0.0/12"),
                "vxlan-tx-checksum" => ("off".to_owned(), "off"),
                _ => ("/x".to_owned(), "/x"),
            },
        };
        let companion = match flag.name {
            "etcd-certfile" => "etcd-keyfile: k",
            "etcd-keyfile" => "etcd-certfile: c",
            "etcd-username" => "etcd-password: p",
            "etcd-password" => "etcd-username: u",
            "seed-config" => "flannel_ip_range: 10.0.0.0/8",
            _ => "",
        };
        let text = format!("# first\n{}: {value}\n{companion}\n", flag.name);
        let found = given(&text).remove(flag.name);
        assert_eq!(found, Some((shown.to_owned(), Origin::File { line: 2 })), "{text}");
    }
}

#[test]
fn the_command_line_wins_over_the_environment_over_the_file() {
    let text = "etcd-prefix: /file\niface: [a, b]\nv: 3\nsubnet-file: /file\n";
    let case = Case {
        words: vec!["-iface=c", "-v=1"],
        variables: &[("FLANNELD_V", "2"), ("FLANNELD_SUBNET_FILE", "/env")],
        text,
    };
    let options = case.run().unwrap().options;
    assert_eq!(options.etcd.prefix.as_str(), "/file");
    assert_eq!(options.iface.ifaces, ["c"], "a list is replaced, not lengthened");
    assert_eq!(options.verbosity, 1);
    assert_eq!(options.subnet_file, Path::new("/env"));
}

#[test]
fn the_file_is_named_by_the_environment_as_well() {
    let outcome = with("v: 7\n", &|outside| {
        read(["flanneld".into()], [("FLANNELD_CONFIG_FILE".into(), "F".into())], outside)
    });
    let Ok(Invocation::Run(configured)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(configured.options.verbosity, 7);
    assert_eq!(configured.given(), "config-file=F (environment), v=7 (configuration file, line 1)");
}

#[test]
fn what_wins_over_the_file_is_not_evaluated() {
    let text = "k8s_interface: nowhere0\n";
    assert_eq!(
        message(text),
        "the role's default: public-ip refers to ansible_nowhere0, which is not defined: \
         the interfaces of this host are tap0, wg0, tun-a, dummy0"
    );
    let case = Case { words: vec!["-public-ip=10.8.0.9", "-iface=wg0"], variables: &[], text };
    assert_eq!(case.run().unwrap().options.iface.ifaces, ["wg0"]);
}

#[test]
fn facts_are_gathered_once_and_only_for_a_template_that_asks() {
    for (text, times) in [
        ("iface: wg0\n", 0),
        ("k8s_conf_dir: /x\nk8s_ca_conf_directory: \"{{ '~' | expanduser }}\"\n", 0),
        ("k8s_interface: wg0\n", 1),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let facts = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            host()
        });
        let outside = Outside { read: &|_| Ok(text.to_owned()), facts };
        read(["flanneld".into(), "-config-file=F".into()], [], &outside).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), times, "{text}");
    }
}

// --- variables of the role ---

#[test]
fn the_variables_printed_in_the_role_s_readme_are_a_configuration() {
    let expected = listed(&[
        ("etcd-cafile", "/var/lib/kubernetes/ca-etcd.pem"),
        ("etcd-certfile", "/var/lib/kubernetes/cert-etcd.pem"),
        ("etcd-keyfile", "/var/lib/kubernetes/cert-etcd-key.pem"),
        ("etcd-prefix", "/kubernetes-cluster/network"),
        ("healthz-ip", "0.0.0.0"),
        ("healthz-port", "0"),
        ("iface", "tap0"),
        ("ip-masq", "true"),
        ("public-ip", "10.8.0.112"),
        ("subnet-file", "/run/flannel/subnet.env"),
    ]);
    assert_eq!(values(README), expected);
    let whole = format!("{README}\netcd-endpoints: https://10.8.0.101:2379\n");
    assert_eq!(run(&whole).options.etcd.endpoints.len(), 1);
    assert_eq!(case(README).render(What::Conflist).unwrap(), CONFLIST);
    assert_eq!(case(README).render(What::NetworkConfig).unwrap(), NETWORK_CONFIG);
}

#[test]
fn the_readme_s_example_of_user_settings_is_laid_over_and_refused_by_name() {
    assert_eq!(
        message(&format!("{README}{README_USER}")),
        "kubeconfig-file: /etc/k8s/k8s.cfg (configuration file, line 65) asks for something this version cannot do; \
         supported is leases in etcd (kube-subnet-mgr=false, see etcd-endpoints and etcd-prefix)"
    );
    let without = README_USER.replace("\"kubeconfig-file\": \"/etc/k8s/k8s.cfg\"", "v: 2");
    let values = values(&format!("{README}{without}"));
    assert!(values.contains(&("healthz-ip", "1.2.3.4".to_owned())), "{values:?}");
    assert!(values.contains(&("v", "2".to_owned())), "{values:?}");
    assert!(values.contains(&("ip-masq", "true".to_owned())), "{values:?}");
}

/// Each variable of the role's defaults with another value, and what differs for it.
const VARIABLES: &[(&str, &str, Difference)] = &[
    ("etcd_bin_dir", "/opt/etcd", Difference::Nothing),
    ("etcd_certificates", "[a.pem, b.pem]", Difference::Nothing),
    ("etcd_client_port", "4001", Difference::Option("etcd-endpoints", "https://etcd:4001")),
    ("flannel_backend_type", "VXLAN", Difference::Rendered(What::NetworkConfig, r#""Type": "VXLAN""#)),
    ("flannel_bin_dir", "/opt/bin", Difference::Rendered(What::Unit, "\nExecStart=/opt/bin/flanneld \\\n")),
    ("flannel_cni_conf", "'{\"plugins\":[]}'", Difference::Rendered(What::Conflist, r#"{"plugins": []}"#)),
    ("flannel_cni_conf_file", "20-flannel", Difference::Nothing),
    ("flannel_cni_interface", "cni1", Difference::Rendered(What::Conflist, r#"{"name": "cni1", "#)),
    ("flannel_cni_spec_version", "0.4.0", Difference::Rendered(What::Conflist, r#""cniVersion": "0.4.0""#)),
    ("flannel_etcd_prefix", "/p", Difference::Option("etcd-prefix", "/p")),
    (
        "flannel_ip_range",
        "10.1.0.0/16",
        Difference::Rendered(What::NetworkConfig, r#""Network":"10.1.0.0/16""#),
    ),
    ("flannel_options_dir", "/opt", Difference::Nothing),
    ("flannel_settings", "{etcd-prefix: /q}", Difference::Option("etcd-prefix", "/q")),
    ("flannel_settings_user", "{v: 3}", Difference::Option("v", "3")),
    ("flannel_subnet_file_dir", "/r", Difference::Option("subnet-file", "/r/subnet.env")),
    (
        "flannel_systemd_execstartpost",
        "/bin/true",
        Difference::Rendered(What::Unit, "\nExecStartPost=/bin/true\nExecStart="),
    ),
    (
        "flannel_systemd_execstartpre",
        "'/bin/mkdir {{flannel_options_dir}}'",
        Difference::Rendered(What::Unit, "\nExecStartPre=/bin/mkdir /etc/flannel\n"),
    ),
    ("flannel_systemd_limitnofile", "7", Difference::Rendered(What::Unit, "\nLimitNOFILE=7\n")),
    ("flannel_systemd_limitnproc", "8", Difference::Rendered(What::Unit, "\nLimitNPROC=8\n")),
    ("flannel_systemd_restartsec", "9", Difference::Rendered(What::Unit, "\nRestartSec=9\n")),
    ("flannel_version", "v0.20.2", Difference::Nothing),
    ("k8s_ca_conf_directory", "/ca", Difference::Nothing),
    ("k8s_cni_conf_dir", "/cni", Difference::Nothing),
    ("k8s_conf_dir", "/k", Difference::Option("etcd-cafile", "/k/ca-etcd.pem")),
    ("k8s_interface", "wg0", Difference::Option("public-ip", "10.8.0.111")),
];

enum Difference {
    Nothing,
    Option(&'static str, &'static str),
    Rendered(What, &'static str),
}

#[test]
fn every_variable_of_the_role_does_what_it_does_for_the_role() {
    let known = role::VARIABLES.iter().map(|variable| variable.name).filter(|name| *name != role::SEED);
    assert_eq!(known.collect::<Vec<_>>(), VARIABLES.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
    let everything = |text: &str| {
        let rendered = |what| case(text).render(what).unwrap();
        (values(text), [What::Unit, What::Conflist, What::NetworkConfig].map(rendered))
    };
    let base = "etcd-endpoints: https://etcd\n";
    for (name, value, difference) in VARIABLES {
        let text = format!("{base}{name}: {value}\n");
        match difference {
            Difference::Nothing => assert_eq!(everything(&text), everything(base), "{text}"),
            Difference::Option(option, expected) => {
                assert!(
                    values(&text).contains(&(*option, (*expected).to_owned())),
                    "{text}{:?}",
                    values(&text)
                );
            }
            Difference::Rendered(what, part) => {
                let rendered = case(&text).render(*what).unwrap();
                assert!(rendered.contains(part), "{text}{rendered}");
                assert!(!case(base).render(*what).unwrap().contains(part), "{text}");
            }
        }
    }
}

#[test]
fn a_variable_of_the_wrong_type_is_named_with_its_line() {
    for (name, _, _) in VARIABLES {
        let (value, expected, got) = match role::find(name).unwrap().shape {
            role::Shape::Scalar => ("[1]", "a text", "a list"),
            role::Shape::List => ("1", "a list of texts", "a number"),
            role::Shape::Settings => ("[1]", "a mapping of options (NAME: VALUE)", "a list"),
        };
        let expected = format!("line 2: {name}: expected {expected}, got {got}");
        assert_eq!(message(&format!("\n{name}: {value}\n")), expected);
    }
}

#[test]
fn the_role_s_own_settings_are_meant_as_soon_as_a_variable_of_theirs_is_given() {
    let of_role = listed(&[
        ("etcd-cafile", "/k/ca-etcd.pem"),
        ("etcd-certfile", "/k/cert-etcd.pem"),
        ("etcd-keyfile", "/k/cert-etcd-key.pem"),
        ("etcd-prefix", "/kubernetes-cluster/network"),
        ("healthz-ip", "0.0.0.0"),
        ("healthz-port", "0"),
        ("ip-masq", "true"),
        ("subnet-file", "/run/flannel/subnet.env"),
    ]);
    assert_eq!(values("k8s_conf_dir: /k\n"), of_role);
    assert_eq!(given("k8s_conf_dir: /k\n")["ip-masq"].1, Origin::Role);
    for nothing in
        ["flannel_ip_range: 10.0.0.0/8", "flannel_bin_dir: /b", "k8s_conf_dir: /k\nflannel_settings: {}"]
    {
        assert_eq!(values(nothing), [], "{nothing}");
    }
}

#[test]
fn the_nearer_word_wins() {
    let text = "flannel_settings: {v: 1, iface: a, iptables-resync: 1}\n\
                flannel_settings_user: {v: 2, iface: b}\n\
                v: 3\n";
    assert_eq!(values(text), listed(&[("iface", "b"), ("iptables-resync", "1"), ("v", "3")]));
    assert_eq!(given(text)["iface"].1, Origin::File { line: 2 });
}

#[test]
fn the_file_that_the_role_s_unit_names_may_be_the_role_s_variables() {
    let text = "flannel_settings: {v: 1}\nflannel_settings_user: {config-file: /etc/flannel/flanneld.yml}\n";
    assert_eq!(values(text), listed(&[("v", "1")]));
}

#[test]
fn references_are_followed_as_ansible_does() {
    for (text, prefix) in [
        ("etcd-prefix: '/{{flannel_cni_interface}}'", "/cni0"),
        (
            "flannel_cni_interface: '{{k8s_interface}}'\nk8s_interface: a\netcd-prefix: '/{{ flannel_cni_interface }}/x'\niface: b\npublic-ip: 10.0.0.1",
            "/a/x",
        ),
        ("etcd-prefix: \"{{ '~/k8s/certs' | expanduser }}\"", "/home/operator/k8s/certs"),
        ("etcd-prefix: \"{{ '/~' | expanduser }}{{ '~a' | expanduser }}\"", "/~~a"),
        ("etcd-prefix: '{{ k8s_ca_conf_directory }}'", "/home/operator/k8s/certs"),
        ("etcd-prefix: '/{{ nothing | default(\"d\") }}'", "/d"),
        ("etcd-prefix: '/{{ flannel_settings.iface }}'\nflannel_settings: {iface: x}", "/x"),
        (
            "etcd-prefix: '/{{ etcd_certificates | join(\"-\") }}'\netcd_certificates: [a, '{{etcd_client_port}}']",
            "/a-2379",
        ),
        ("etcd-prefix: '/{% if k8s_interface is defined %}a{% else %}b{% endif %}'", "/b"),
        ("etcd-prefix: '/{{ ansible_hostname }}/{{ inventory_hostname }}'", "/worker01/worker01"),
        ("etcd-prefix: '/{{ ansible_tun_a.ipv4.address }}/{{ ansible_tun_a.device }}'", "/10.9.0.1/tun-a"),
        (
            "etcd-prefix: '/{{ ansible_wg0.macaddress }}/{{ ansible_wg0.ipv4.prefix }}/{{ ansible_wg0.active }}'",
            "/02:00:00:00:00:01/24/True",
        ),
        ("etcd-prefix: \"{{ hostvars['worker01'].flannel_bin_dir }}\"", "/usr/local/sbin"),
    ] {
        let values = values(text);
        assert!(values.contains(&("etcd-prefix", prefix.to_owned())), "{text}: {values:?}");
    }
}

#[test]
fn what_is_not_defined_is_named_with_the_key_that_needs_it() {
    for (text, expected) in [
        (
            "v: 1\netcd-prefix: '/{{ nothing }}'",
            "line 2: etcd-prefix refers to nothing, which is not defined: known are the variables of the role, \
             hostvars, inventory_hostname, ansible_hostname, ansible_nodename and ansible_INTERFACE",
        ),
        (
            "etcd-prefix: '/{{ flanel_bin_dir }}'",
            "line 1: etcd-prefix refers to flanel_bin_dir, which is not defined: did you mean flannel_bin_dir?",
        ),
        (
            "etcd-prefix: '/{{ ansible_wg0.ipv6 }}'",
            "line 1: etcd-prefix refers to ansible_wg0.ipv6, which is not defined: known are active, device, ipv4 and macaddress",
        ),
        (
            "etcd-prefix: '/{{ flannel_cni_interface }}'\nflannel_cni_interface: '{{ k8s_interface }}'",
            "line 2: flannel_cni_interface refers to k8s_interface, which is not defined: give it in the file",
        ),
        (
            "public-ip: \"{{ hostvars[inventory_hostname]['ansible_' + k8s_interface].ipv4.address }}\"\nk8s_interface: dummy0",
            "line 1: public-ip refers to ansible_dummy0.ipv4, which is not defined: the interface has no IPv4 address",
        ),
        (
            "public-ip: \"{{ hostvars['etcd01'].x }}\"",
            "line 1: public-ip refers to hostvars[\"etcd01\"], which is not defined: only this host, \"worker01\", is known here",
        ),
        (
            "etcd-prefix: '{{ flannel_bin_dir }}'\nflannel_bin_dir: '{{ flannel_version }}'\nflannel_version: '{{ flannel_bin_dir }}'",
            "line 2: flannel_bin_dir refers to itself: etcd-prefix → flannel_bin_dir → flannel_version → flannel_bin_dir",
        ),
    ] {
        assert_eq!(message(text), expected, "{text}");
    }
    let twice = |name: &str, of: &str| format!("{name}: '{}'\n", format!("{{{{ {of} }}}}").repeat(40));
    let chain = [
        "flannel_bin_dir",
        "flannel_cni_conf_file",
        "flannel_version",
        "flannel_cni_spec_version",
        "flannel_cni_interface",
    ];
    let doubled: String = std::iter::once(format!("{}: '{}'\n", chain[0], "x".repeat(40)))
        .chain(chain.windows(2).map(|pair| twice(pair[1], pair[0])))
        .collect();
    assert_eq!(
        message(&(doubled + "etcd-prefix: '{{ flannel_cni_interface }}'")),
        "line 1: flannel_bin_dir: the template cannot be evaluated: the file's variables grow beyond 4 MiB"
    );
    for text in [
        "etcd-prefix: '{{ 1 +'",
        "etcd-prefix: '{{ x | nofilter }}'",
        "etcd-prefix: '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'",
    ] {
        let message = message(text);
        assert!(message.starts_with("line 1: etcd-prefix: the template cannot be evaluated: "), "{message}");
    }
}

// --- mistakes ---

#[test]
fn unknown_keys_are_errors_with_a_suggestion() {
    for (text, expected) in [
        ("ifac: x", "line 1: ifac is neither an option nor a variable of the role: did you mean iface?"),
        (
            "flanel_ip_range: x",
            "line 1: flanel_ip_range is neither an option nor a variable of the role: did you mean flannel_ip_range?",
        ),
        (
            "kubernetes: x",
            "line 1: kubernetes is neither an option nor a variable of the role: flanneld -help lists all options",
        ),
        (
            "flannel_settings:\n  etcd-prefx: /x",
            "line 2: etcd-prefx is neither an option nor a variable of the role: did you mean etcd-prefix?",
        ),
        (
            "flannel_settings_user:\n  flannel_ip_range: 10.0.0.0/8",
            "line 2: flannel_ip_range is a variable of the role, not an option: give it beside flannel_settings_user, not within it",
        ),
        (
            "flannel_settings:\n  flanel_ip_range: 10.0.0.0/8",
            "line 2: flanel_ip_range is neither an option nor a variable of the role: flanneld -help lists all options",
        ),
        (
            "<<: {v: 1}",
            "line 1: << is neither an option nor a variable of the role: flanneld -help lists all options",
        ),
    ] {
        assert_eq!(message(text), expected);
    }
}

#[test]
fn wrong_values_name_the_key_what_was_expected_and_the_line() {
    for (text, expected) in [
        ("\nip-masq: maybe", "ip-masq: maybe (configuration file, line 2): expected true or false"),
        ("ip-masq: [a]", "line 1: ip-masq: expected true or false, got a list"),
        ("ip-masq: 2", "line 1: ip-masq: expected true or false, got a number"),
        ("v: true", "line 1: v: expected an integer, got a boolean"),
        ("v: 1.5", "line 1: v: expected an integer, got a number"),
        ("v:", "line 1: v: expected an integer, got nothing"),
        ("iface: {a: b}", "line 1: iface: expected a text or a list of texts, got a mapping"),
        ("etcd-prefix: [a, b]", "line 1: etcd-prefix: expected a text, got a list"),
        (
            "iptables-resync: 0",
            "iptables-resync: 0 (configuration file, line 1): expected an integer from 1 to 86400 (seconds)",
        ),
        ("flannel_settings:\n  v: [1]", "line 2: v: expected an integer, got a list"),
        (
            "kube-subnet-mgr: true",
            "kube-subnet-mgr: true (configuration file, line 1) asks for something this version cannot do; supported is leases in etcd (kube-subnet-mgr=false, see etcd-endpoints and etcd-prefix)",
        ),
    ] {
        assert_eq!(message(text), expected);
    }
    let unreadable = Outside { read: &|_| Err("No such file".to_owned()), facts: Arc::new(host) };
    let error = read(["flanneld".into(), "-config-file=/x.yml".into()], [], &unreadable).unwrap_err();
    assert_eq!(error.to_string(), "configuration file /x.yml: cannot be read: No such file");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        case("").run().unwrap_err().to_string(),
        "configuration file F: is empty: expected options or variables of the role (KEY: VALUE)"
    );
}

#[test]
fn a_secret_of_the_file_is_shown_nowhere() {
    let text = "etcd-username: bob\netcd-password: hunter2\n";
    let configured = run(text);
    assert_eq!(configured.options.etcd.credentials.as_ref().unwrap().password.expose(), "hunter2");
    assert!(!format!("{configured:?} {}", configured.given()).contains("hunter2"));
    for what in [What::Options, What::Unit] {
        assert!(!case(text).render(what).unwrap().contains("hunter2"), "{what:?}");
    }
    for text in [
        "etcd-password: [hunter2]",
        "etcd-password: '{{ hunter2 }}'",
        "etcd-password: '{{ hunter2'",
        "etcd-password: 'hunter2{{'",
        "hunter2",
        "etcd-endpoints: http://bob:hunter2@a:1",
        "etcd-password: !vault hunter2",
        "etcd-password: hunter2",
    ] {
        let error = case(text).run().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

// --- the network config ---

#[test]
fn the_seed_is_what_the_role_writes() {
    let seed = |text: &str| run(text).options.seed;
    let written = Some(NETWORK_CONFIG.trim_end().to_owned());
    let network = "flannel_ip_range: 10.200.0.0/16\n";
    assert_eq!(seed(&format!("{network}flannel_backend_type: vxlan\nflannel_seed_config: true\n")), written);
    assert_eq!(seed(&format!("{network}seed-config: true\n")), written);
    assert_eq!(
        Case { words: vec!["-seed-config"], variables: &[], text: README }.run().unwrap().options.seed,
        written
    );
    assert_eq!(seed(network), None, "only when asked for");
    assert_eq!(seed(README), None);
    let nothing = "seed-config needs flannel_ip_range in a configuration file (and flannel_backend_type, unless vxlan is meant)";
    assert_eq!(message("seed-config: true"), nothing);
}

#[test]
fn a_network_that_cannot_be_is_refused_with_the_variable() {
    for (text, expected) in [
        (
            "flannel_backend_type: host-gw",
            "line 1: flannel_backend_type: network config asks for Backend.Type \"host-gw\", which this flanneld does not support (supported: vxlan)",
        ),
        (
            "v: 1\nflannel_ip_range: 10.200.0.0",
            "line 2: flannel_ip_range: network config is not valid: Network: \"10.200.0.0\" is not an IPv4 CIDR (expected e.g. 10.200.0.0/16)",
        ),
    ] {
        assert_eq!(message(text), expected);
    }
    assert!(message("flannel_ip_range: '10.0.0.0/8\",\"x\":\"'").contains("is not an IPv4 CIDR"));
}

// --- what the role writes ---

#[test]
fn rendered_files_equal_the_role_s_byte_for_byte() {
    let endpoints = vec!["-etcd-endpoints=https://10.8.0.101:2379"];
    let case = |text| Case { words: endpoints.clone(), variables: &[], text };
    assert_eq!(case(VARS).render(What::Unit).unwrap(), UNIT);
    assert_eq!(case(VARS).render(What::Conflist).unwrap(), CONFLIST);
    assert_eq!(case(VARS).render(What::NetworkConfig).unwrap(), NETWORK_CONFIG);
    let post = "flannel_systemd_execstartpost: \"/sbin/ethtool -K flannel.1 tx off\"\n\
                flannel_settings_user:\n  \"healthz-ip\": \"127.0.0.1\"\n  \"healthz-port\": \"10259\"\n";
    assert_eq!(case(&format!("{VARS}{post}")).render(What::Unit).unwrap(), UNIT_POST);
    let by_environment = Case {
        words: Vec::new(),
        variables: &[("FLANNELD_ETCD_ENDPOINTS", "https://10.8.0.101:2379")],
        text: VARS,
    };
    assert_eq!(by_environment.render(What::Unit).unwrap(), UNIT);
    let in_the_file = format!("etcd-endpoints: [https://10.8.0.101]\n{VARS}");
    assert_eq!(
        Case { words: Vec::new(), variables: &[], text: &in_the_file }.render(What::Unit).unwrap(),
        UNIT
    );
}

#[test]
fn rendered_options_show_every_option_with_its_origin() {
    let rendered = Case { words: vec!["-v=2"], variables: &[("FLANNELD_IFACE", "wg0")], text: VARS };
    let rendered = rendered.render(What::Options).unwrap();
    assert_eq!(rendered.lines().count(), flags::ALL.len());
    for line in [
        "v=2 (command line)",
        "iface=wg0 (environment)",
        "etcd-prefix=/kubernetes-cluster/network (configuration file, line 31)",
        "firewall=auto (default)",
    ] {
        assert!(rendered.lines().any(|found| found == line), "{line} in\n{rendered}");
    }
}

#[test]
fn there_is_nothing_to_render_without_a_file() {
    let outside = Outside { read: &|_| panic!("read"), facts: Arc::new(|| panic!("gathered")) };
    let error = render(What::Unit, [], [], &outside).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unit is made from the variables of a configuration file: give -config-file=FILE"
    );
    assert!(render(What::Options, [], [], &outside).unwrap().contains("\nv=0 (default)\n"));
}

#[test]
fn text_that_is_not_json_stays_as_it_is() {
    let text = "flannel_cni_conf: |\n  not {{flannel_cni_interface}}\n";
    assert_eq!(case(text).render(What::Conflist).unwrap(), "not cni0\n");
}

// --- reading again ---

#[test]
fn what_can_change_at_run_time_is_applied_and_the_rest_is_named() {
    let running =
        run("v: 0\niface: a\nsubnet-lease-renew-margin: 60\netcd-username: u\netcd-password: hunter2\n");
    let fresh = run(
        "v: 2\niface: b\nsubnet-lease-renew-margin: 30\nip-masq: true\netcd-username: u\netcd-password: hunter3\n",
    );
    let reloaded = running.reload(&fresh).unwrap();
    let names =
        |options: &[crate::options::Effective]| options.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        names(&reloaded.applied),
        [
            "ip-masq=true (configuration file, line 4)",
            "subnet-lease-renew-margin=30 (configuration file, line 3)",
            "v=2 (configuration file, line 1)"
        ]
    );
    assert_eq!(
        names(&reloaded.restart),
        ["etcd-password=*** (configuration file, line 6)", "iface=b (configuration file, line 2)"]
    );
    let options = &reloaded.configured.options;
    assert_eq!((options.verbosity, options.firewall.ip_masq), (2, true));
    assert_eq!(options.lease.renew_margin.as_secs(), 1800);
    assert_eq!(options.iface.ifaces, ["a"]);
    assert_eq!(
        reloaded.to_string(),
        "options read again: ip-masq=true (configuration file, line 4), \
         subnet-lease-renew-margin=30 (configuration file, line 3), v=2 (configuration file, line 1) from now on; \
         RESTART for etcd-password=*** (configuration file, line 6), iface=b (configuration file, line 2)"
    );
    let same = running.reload(&running).unwrap();
    assert_eq!(same.to_string(), "options read again: none of those in effect has changed");
    let again = reloaded.configured.reload(&fresh).unwrap();
    assert_eq!((again.applied.len(), again.restart.len()), (0, 2), "what needs a restart stays so");
}

#[test]
fn a_change_that_does_not_fit_to_what_stays_changes_nothing() {
    let running = run("subnet-lease-ttl: 600\nsubnet-lease-renew-margin: 5\n");
    let fresh = run("subnet-lease-ttl: 6000\nsubnet-lease-renew-margin: 20\n");
    let error = running.reload(&fresh).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "subnet-lease-renew-margin=20 (minutes, configuration file, line 2) must be shorter"
        ),
        "{error}"
    );
}
