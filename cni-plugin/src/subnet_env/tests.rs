//! Every oddity of the contract's section 5.

use super::*;
use proptest::prelude::*;

const V4: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V6: &str =
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ok(text: &str) -> SubnetEnv {
    parse(text.as_bytes()).unwrap()
}

fn fault(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err().to_string()
}

/// The IPv4 file with one more line at its end.
fn plus(line: &str) -> String {
    format!("{V4}{line}")
}

#[test]
fn ipv4_ipv6_and_both_families() {
    let v4 = ok(V4);
    assert_eq!(v4.networks, cidrs(&["10.1.0.0/16"]));
    assert_eq!(v4.subnets, cidrs(&["10.1.17.0/24"]));
    assert_eq!((v4.mtu, v4.flanneld_masquerades), (1472, true));
    let v6 = ok(V6);
    assert_eq!(v6.networks, cidrs(&["fc00::/48"]));
    assert_eq!(v6.subnets, cidrs(&["fc00::/64"]));
    let both = ok(&format!("{V6}{V4}"));
    assert_eq!(both.networks, cidrs(&["10.1.0.0/16", "fc00::/48"]), "IPv4 first, whatever the order");
    assert_eq!(both.subnets, cidrs(&["10.1.17.0/24", "fc00::/64"]));
}

#[test]
fn a_file_without_any_key_names_all_six_in_order() {
    for text in ["foo=bar\n", "", "# nothing\n"] {
        assert_eq!(
            fault(text),
            "missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
    }
}

#[test]
fn one_family_is_enough_and_may_differ_between_network_and_subnet() {
    assert_eq!(
        fault("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true"),
        "missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"
    );
    let mixed =
        ok("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true");
    assert_eq!(mixed.subnets, cidrs(&["fc00::/64"]));
}

#[test]
fn networks_are_masked_and_deduplicated_in_order() {
    let env = ok(&plus("FLANNEL_NETWORK=192.168.1.1/16,10.1.2.3/16,192.168.0.0/16,10.1.0.0/17"));
    assert_eq!(env.networks, cidrs(&["192.168.0.0/16", "10.1.0.0/16", "10.1.0.0/17"]));
}

#[test]
fn crlf_no_final_newline_comments_blank_lines_and_foreign_keys() {
    let text = format!("# c\n\nFOO=x\nnonsense\n=\n{}", V4.trim_end().replace('\n', "\r\n"));
    assert_eq!(ok(&text), ok(V4));
}

#[test]
fn the_last_line_of_a_key_counts() {
    assert_eq!(ok(&plus("FLANNEL_MTU=9000")).mtu, 9000);
    assert!(!ok(&plus("FLANNEL_IPMASQ=false")).flanneld_masquerades);
}

#[test]
fn another_spelling_of_a_key_is_an_unknown_key() {
    for line in
        [" FLANNEL_MTU=1", "export FLANNEL_MTU=1", "flannel_mtu=1", "FLANNEL_MTU =1", "FLANNEL_MTUX=1"]
    {
        assert_eq!(ok(&plus(line)).mtu, 1472, "{line}");
    }
}

#[test]
fn blanks_around_a_value_are_trimmed() {
    let env = ok(&plus("FLANNEL_IPMASQ= true \nFLANNEL_MTU=\t1400\nFLANNEL_SUBNET= 10.1.18.1/24\r"));
    assert_eq!((env.flanneld_masquerades, env.mtu), (true, 1400));
    assert_eq!(env.subnets, cidrs(&["10.1.18.0/24"]));
}

#[test]
fn a_known_key_without_an_equals_sign_is_malformed_not_fatal() {
    for key in KEYS {
        assert!(fault(&plus(key)).contains(&format!("line 5: {key}: no '='")), "{key}");
        assert!(fault(&plus(&format!("{key}\r"))).contains("no '='"), "{key}");
    }
}

#[test]
fn ipmasq_is_true_or_false_and_nothing_else() {
    for value in ["TRUE", "1", "True", "yes", "", "false2", "\"true\""] {
        assert!(
            fault(&plus(&format!("FLANNEL_IPMASQ={value}"))).contains("neither true nor false"),
            "{value}"
        );
    }
}

#[test]
fn the_mtu_is_a_plain_32_bit_number() {
    assert_eq!(ok(&plus("FLANNEL_MTU=0")).mtu, 0);
    assert_eq!(ok(&plus("FLANNEL_MTU=4294967295")).mtu, u32::MAX);
    for value in ["", "+1450", "-1", "14 50", "4294967296", "1450.0", "0x10", "1_450"] {
        assert!(fault(&plus(&format!("FLANNEL_MTU={value}"))).contains("not a number"), "{value}");
    }
}

#[test]
fn malformed_networks_and_subnets() {
    for line in [
        "FLANNEL_NETWORK=",
        "FLANNEL_NETWORK=10.1.0.0/16, 10.2.0.0/16",
        "FLANNEL_NETWORK=10.1.0.0/16,",
        "FLANNEL_NETWORK=10.1.0.0",
        "FLANNEL_SUBNET=",
        "FLANNEL_SUBNET=10.1.17.1/24,10.1.18.1/24",
        "FLANNEL_SUBNET=\"10.1.17.1/24\"",
        "FLANNEL_SUBNET=$(reboot)",
        "FLANNEL_IPV6_SUBNET=x",
    ] {
        assert!(matches!(parse(plus(line).as_bytes()), Err(Fault::Malformed { line: 5, .. })), "{line}");
    }
}

#[test]
fn a_value_of_the_other_family_is_malformed() {
    for line in [
        "FLANNEL_NETWORK=fc00::/48",
        "FLANNEL_SUBNET=fc00::1/64",
        "FLANNEL_IPV6_NETWORK=10.1.0.0/16",
        "FLANNEL_IPV6_SUBNET=10.1.17.1/24",
        "FLANNEL_NETWORK=10.1.0.0/16,fc00::/48",
    ] {
        assert!(fault(&plus(line)).contains("expected"), "{line}");
    }
}

#[test]
fn an_empty_ipv6_value_means_absent() {
    assert_eq!(ok(&plus("FLANNEL_IPV6_NETWORK=\nFLANNEL_IPV6_SUBNET=  ")), ok(V4));
}

#[test]
fn bytes_that_are_not_utf8_matter_only_in_known_values() {
    let mut text = b"\xff\xfe=\xff\n#\xff\n".to_vec();
    text.extend_from_slice(V4.as_bytes());
    assert_eq!(parse(&text).unwrap(), ok(V4));
    text.extend_from_slice(b"FLANNEL_MTU=\xff");
    assert!(matches!(parse(&text), Err(Fault::Malformed { line: 7, key: "FLANNEL_MTU", .. })));
}

#[test]
fn codes_tell_what_may_heal() {
    let bad = |fault| SubnetEnvError::Bad { path: "/x".into(), fault };
    assert_eq!(bad(parse(b"").unwrap_err()).code(), 11);
    assert_eq!(bad(parse(b"FLANNEL_MTU").unwrap_err()).code(), 7);
    let absent = read(Path::new("/nonexistent/subnet.env")).unwrap_err();
    assert_eq!(absent.code(), 11);
    assert!(absent.to_string().contains("/nonexistent/subnet.env"));
    assert!(absent.advice().unwrap().contains("flanneld's log"));
    assert_eq!(read(Path::new("/")).unwrap_err().code(), 5);
    assert_eq!(read(Path::new("")).unwrap_err().code(), 11);
    assert_eq!(read(Path::new("a\0b")).unwrap_err().code(), 5);
}

#[test]
fn without_patience_it_reads_once() {
    assert_eq!(wait_for(Path::new("/nonexistent"), Duration::ZERO).unwrap_err().code(), 11);
}

proptest! {
    #[test]
    fn never_panics_on_bytes(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&text);
    }

    #[test]
    fn never_panics_on_lines_that_look_right(
        lines in proptest::collection::vec(("FLANNEL_(IPV6_)?(NETWORK|SUBNET|MTU|IPMASQ)", "=?[0-9a-f.:/, truefls]{0,30}"), 0..12)
    ) {
        let text: String = lines.iter().map(|(key, value)| format!("{key}{value}\n")).collect();
        if let Ok(env) = parse(text.as_bytes()) {
            prop_assert!(!env.networks.is_empty() && !env.subnets.is_empty() && env.subnets.len() <= 2);
            for cidr in env.networks.iter().chain(&env.subnets) {
                prop_assert_eq!(*cidr, cidr.network());
            }
        }
    }
}
