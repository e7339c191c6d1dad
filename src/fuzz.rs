//! What the fuzz targets of `fuzz/` run: one function a target, which panics when the code under test panics or breaks a promise.
//! As ordinary tests they run over the committed corpus.
//!
//! The bodies lie in `fuzz/bodies`. They are compiled here, for tests and for cargo-fuzz (`--cfg fuzzing`) alone, so that private
//! parsers are reached without being public for it.

// Bodies fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../fuzz/bodies/lease_key.rs"]
mod lease_key;
#[path = "../fuzz/bodies/lease_value.rs"]
mod lease_value;
#[path = "../fuzz/bodies/options_yaml.rs"]
mod options_yaml;
#[path = "../fuzz/bodies/subnet_env_previous.rs"]
mod subnet_env_previous;

pub use crate::firewall::iptables::fuzz::check as iptables_save;
pub use crate::firewall::nftables::fuzz::check as nftables;
pub use crate::kernel::fuzz::check as netlink;
pub use crate::store::etcd_v2_json::fuzz::check as etcd_v2_json;
pub use lease_key::check as lease_key;
pub use lease_value::check as lease_value;
pub use options_yaml::check as options_yaml;
pub use subnet_env_previous::check as subnet_env_previous;

/// Whole inputs, and each cut off at every `step`th byte.
#[cfg(test)]
fn over_corpus(target: &str, step: usize, check: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        for length in (0..input.len()).step_by(step).chain([input.len()]) {
            check(&input[..length]);
        }
        count += 1;
    }
    assert!(count >= 5, "{count} files in {}", folder.display());
}

#[cfg(test)]
mod tests {
    use super::over_corpus;

    #[test]
    fn values_of_leases_and_configs() {
        over_corpus("lease_value", 1, super::lease_value);
    }

    #[test]
    fn keys_of_leases() {
        over_corpus("lease_key", 1, super::lease_key);
    }

    #[test]
    fn answers_of_etcd_v2() {
        over_corpus("etcd_v2_json", 1, super::etcd_v2_json);
    }

    #[test]
    fn configuration_files() {
        over_corpus("options_yaml", 61, super::options_yaml);
    }

    #[test]
    fn a_former_subnet_env() {
        over_corpus("subnet_env_previous", 1, super::subnet_env_previous);
    }

    #[test]
    fn netlink_messages() {
        over_corpus("netlink", 1, super::netlink);
    }

    #[test]
    fn netfilter_messages() {
        over_corpus("nftables", 1, super::nftables);
    }

    #[test]
    fn saved_iptables() {
        over_corpus("iptables_save", 7, super::iptables_save);
    }
}
