//! What README.md shows and lists is what the plugin takes.

// Helpers of tests may fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use flannel_cni::check_config::inspect;
use flannel_cni::netconf::Document;
use flannel_cni::subnet_env;
use flannel_cni::version::CniVersion;
use serde_json::json;

const README: &str = include_str!("../README.md");
const SUBNET_ENV: &[u8] =
    b"FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

#[test]
fn every_conflist_it_shows_is_usable_without_a_warning() {
    let blocks: Vec<&str> =
        README.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3);
    for block in blocks {
        let report = inspect(block.as_bytes(), |_| Ok(subnet_env::parse(SUBNET_ENV).unwrap()), None);
        assert_eq!(report.findings(), "the configuration is usable\n", "{block}");
    }
}

#[test]
fn every_key_it_lists_is_one_the_plugin_reads() {
    let table = README.split("| key of the flannel entry |").nth(1).unwrap().split("\n\n").next().unwrap();
    let keys: Vec<&str> =
        table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(keys.len(), 7, "{keys:?}");
    for key in keys {
        // No field is a list, and what is not read is never refused.
        let document = Document::parse(json!({"name": "n", key: []}).to_string().as_bytes()).unwrap();
        let error = document.into_netconf(CniVersion::V0_3_1).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}
