//! `subnet.env` as the CNI plugin reads it. Whatever the bytes are: no panic, and either values that make sense or an error
//! that names a line.

use flannel_cni::error::Error;
use flannel_cni::netconf::Object;
use flannel_cni::subnet_env::{Fault, SubnetEnv, SubnetEnvError, parse};
use flannel_cni::version::CniVersion;

/// The target.
pub fn check(text: &[u8]) {
    match parse(text) {
        Ok(env) => understood(&env, text),
        Err(fault) => refused(fault, text),
    }
}

fn understood(env: &SubnetEnv, text: &[u8]) {
    assert!(!env.networks.is_empty() && (1..=2).contains(&env.subnets.len()));
    for list in [&env.networks, &env.subnets] {
        assert!(list.iter().all(|cidr| *cidr == cidr.network()));
        assert!(list.is_sorted_by_key(|cidr| !cidr.is_ipv4()), "IPv4 first");
    }
    assert_eq!(
        parse(render(env).as_bytes()).as_ref(),
        Ok(env),
        "what it understood, written as flanneld writes it"
    );
    let foreign = [text, b"\n# a comment\nFOREIGN=1\n"].concat();
    assert_eq!(parse(&foreign).as_ref(), Ok(env));
    let dos: Vec<u8> =
        text.iter().flat_map(|byte| if *byte == b'\n' { b"\r\n".to_vec() } else { vec![*byte] }).collect();
    assert_eq!(parse(&dos).as_ref(), Ok(env));
}

fn render(env: &SubnetEnv) -> String {
    let list = |v4: bool| {
        let of_family = env.networks.iter().filter(|cidr| cidr.is_ipv4() == v4);
        of_family.map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let mut text = format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", env.mtu, env.flanneld_masquerades);
    for (infix, v4) in [("", true), ("IPV6_", false)] {
        let subnet = env.subnets.iter().find(|cidr| cidr.is_ipv4() == v4);
        for (key, value) in
            [("NETWORK", list(v4)), ("SUBNET", subnet.map(ToString::to_string).unwrap_or_default())]
        {
            if !value.is_empty() {
                text += &format!("FLANNEL_{infix}{key}={value}\n");
            }
        }
    }
    text
}

fn refused(fault: Fault, text: &[u8]) {
    match &fault {
        Fault::Missing(keys) => assert!(!keys.is_empty()),
        Fault::Malformed { line, .. } => {
            let lines = text.split(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(line));
        }
    }
    let code = if matches!(fault, Fault::Missing(_)) { 11 } else { 7 };
    let error = Error::from(SubnetEnvError::Bad { path: "/run/flannel/subnet.env".into(), fault });
    let object: Object = serde_json::from_str(&error.to_json(CniVersion::NEWEST).to_string()).unwrap();
    assert_eq!(object["code"], code);
}
