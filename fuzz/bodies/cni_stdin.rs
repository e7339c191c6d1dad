//! The CNI plugin's standard input through every decision of every command, and the same bytes wherever else JSON from
//! outside comes in. Whatever they are: no panic, one proper answer, and nothing of the user's lost.

use flannel_cni::check_config;
use flannel_cni::cidr::Cidr;
use flannel_cni::delegate_config::{DelegateConfig, Template, from_bytes, warnings};
use flannel_cni::env::Verb;
use flannel_cni::error::Error;
use flannel_cni::netconf::{Document, NetConf, Object};
use flannel_cni::result;
use flannel_cni::stale_bridge::{claim, conflict, uses};
use flannel_cni::state::{self, Entry};
use flannel_cni::subnet_env::{self, SubnetEnv};
use flannel_cni::version::{self, CniVersion};
use serde_json::Value;

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.200.0.0/16,10.201.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\n\
    FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The target.
pub fn check(stdin: &[u8]) {
    let env = subnet_env::parse(SUBNET_ENV.as_bytes()).unwrap();
    for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Status, Verb::Gc] {
        serve(verb, stdin, &env);
    }
    probe(stdin);
    saved_state(stdin);
    delegate_result(stdin);
    conflist(stdin, &env);
}

fn serve(verb: Verb, stdin: &[u8], env: &SubnetEnv) {
    let decoded = Document::parse(stdin).and_then(|document| {
        let version = version::negotiate(verb, document.stated_version()?)?;
        let conf = document.into_netconf(version)?;
        let template = Template::new(&conf)?;
        Ok((conf, template))
    });
    match decoded {
        Ok((conf, template)) => {
            let config = template.fill(env);
            if verb == Verb::Add {
                assert_eq!(from_bytes(stdin, SUBNET_ENV.as_bytes()).unwrap(), config);
            }
            built(&conf, &config, env);
        }
        Err(error) => refused(&error),
    }
}

fn built(conf: &NetConf, config: &DelegateConfig, env: &SubnetEnv) {
    assert!(conf.data_dir.is_absolute());
    assert_eq!(
        serde_json::from_slice::<Object>(&config.to_bytes()).unwrap(),
        *config.object(),
        "survives the pipe"
    );
    assert_eq!(config.text("name"), conf.name);
    assert_ne!(config.text("type"), "flannel");
    if conf.states_version {
        assert_eq!(config.text("cniVersion"), conf.version.as_str());
    }
    for (key, value) in &conf.delegate {
        let ours = key == "runtimeConfig" && conf.runtime_config.is_some()
            || key == "cniVersion" && conf.states_version;
        assert!(ours || config.object().get(key) == Some(value), "the user's {key}");
    }
    if !conf.delegate.contains_key("ipMasq") {
        assert_eq!(config.object()["ipMasq"], !env.flanneld_masquerades);
    }
    addresses(conf, config, env);
    saved(config);
    if let Some(claim) = claim(config, env) {
        assert_eq!(conflict(&claim, &[]), None);
    }
    let _ = (uses(config, "cni0", env.subnets[0]), warnings(conf));
}

/// What the delegate's `ipam` says is this node's, and every destination is one the kernel takes.
fn addresses(conf: &NetConf, config: &DelegateConfig, env: &SubnetEnv) {
    let ipam = &config.object()["ipam"];
    let ranges: Vec<Cidr> =
        ipam["ranges"].as_array().unwrap().iter().map(|set| cidr(&set[0]["subnet"])).collect();
    assert_eq!(ranges, env.subnets);
    let destinations: Vec<Cidr> =
        ipam["routes"].as_array().unwrap().iter().map(|route| cidr(&route["dst"])).collect();
    assert!(destinations.iter().all(|network| *network == network.network()));
    assert!(destinations.ends_with(&env.networks));
    for (key, value) in &conf.ipam {
        assert!(key == "ranges" || key == "routes" || ipam.get(key) == Some(value), "the user's ipam.{key}");
    }
}

fn cidr(value: &Value) -> Cidr {
    value.as_str().unwrap().parse().unwrap()
}

/// What ADD saves, DEL reads.
fn saved(config: &DelegateConfig) {
    match state::parse(&config.to_bytes()) {
        Entry::Saved(read, _) if !config.object().contains_key("flannelAttachment") => {
            assert_eq!(read, *config);
        }
        Entry::Saved(..) => {}
        Entry::Bad => assert_eq!(config.text("type"), ""),
        Entry::Absent => panic!("a text is never absent"),
    }
}

fn refused(error: &Error) {
    let text = error.to_json(CniVersion::NEWEST).to_string();
    let object: Object = serde_json::from_str(&text).unwrap();
    assert!([1, 6, 7].contains(&object["code"].as_u64().unwrap()), "{text}");
    assert_ne!(object["msg"], "");
}

fn probe(stdin: &[u8]) {
    let answer = version::answer(stdin);
    assert!(CniVersion::find(answer["cniVersion"].as_str().unwrap()).is_some());
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), CniVersion::ALL.len());
}

fn saved_state(stdin: &[u8]) {
    if let Entry::Saved(config, _) = state::parse(stdin) {
        assert_ne!(config.text("type"), "");
        let _ = uses(&config, "cni0", "10.200.17.0/24".parse().unwrap());
    }
}

fn delegate_result(stdin: &[u8]) {
    match result::relay(stdin, &DelegateConfig::from_object(Object::new())) {
        Ok(text) => {
            let object: Object = serde_json::from_str(&text).unwrap();
            assert!(CniVersion::find(object["cniVersion"].as_str().unwrap()).is_some());
        }
        Err(error) => refused(&error),
    }
}

fn conflist(stdin: &[u8], env: &SubnetEnv) {
    let report = check_config::inspect(stdin, |_| Ok(env.clone()), None);
    assert_eq!(report.usable(), !report.findings().contains("error: "));
    if report.usable() {
        assert!(serde_json::from_str::<Object>(&report.shown()).is_ok());
    }
}
