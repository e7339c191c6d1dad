//! The addresses of etcd, which no peer's route may cover: those that the endpoints spell out, and those their names stand for
//! at the start. Names are looked up once; the connection itself follows them by its own means.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::options::Endpoint;

/// How long the start waits for names. At least one of them was found a moment ago, by the connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// The addresses that need no looking up.
pub(super) fn literal(endpoints: &[Endpoint]) -> Vec<Ipv4Addr> {
    endpoints.iter().filter_map(|endpoint| endpoint.host().parse().ok()).collect()
}

/// The hosts that are names, each once.
fn names(endpoints: &[Endpoint]) -> Vec<&str> {
    let is_name = |host: &&str| !host.starts_with('[') && host.parse::<Ipv4Addr>().is_err();
    let mut names: Vec<&str> = endpoints.iter().map(Endpoint::host).filter(is_name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The IPv4 addresses behind the names among the endpoints, as far as they are found within a second.
pub async fn look_up(endpoints: &[Endpoint]) -> Vec<Ipv4Addr> {
    let mut lookups = JoinSet::new();
    for name in names(endpoints).into_iter().map(str::to_owned) {
        lookups.spawn(async move {
            let found = timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), 0))).await;
            let found = found.map_err(|_| "no answer in time".to_owned());
            match found.and_then(|answer| answer.map_err(|error| error.to_string())) {
                Ok(addresses) => ipv4(addresses.map(|address| address.ip())),
                Err(error) => {
                    warn!(%name, %error, "this etcd endpoint's addresses are not known, so that a lease which covers them is not told from others");
                    Vec::new()
                }
            }
        });
    }
    let found: Vec<Ipv4Addr> = lookups.join_all().await.concat();
    debug!(?found, "addresses behind the names of etcd endpoints");
    found
}

fn ipv4(addresses: impl Iterator<Item = IpAddr>) -> Vec<Ipv4Addr> {
    let addresses = addresses.filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(urls: &[&str]) -> Vec<Endpoint> {
        urls.iter().map(|url| Endpoint::parse(url).unwrap()).collect()
    }

    #[test]
    fn endpoints_are_addresses_or_names() {
        let endpoints = endpoints(&[
            "http://10.8.0.101:2379",
            "https://10.8.0.102",
            "https://etcd-b.example:2379",
            "https://etcd-a",
            "http://etcd-a:4001",
            "http://[fd00::1]:2379",
            "http://[fd00::2]",
        ]);
        assert_eq!(literal(&endpoints), [Ipv4Addr::new(10, 8, 0, 101), Ipv4Addr::new(10, 8, 0, 102)]);
        assert_eq!(names(&endpoints), ["etcd-a", "etcd-b.example"]);
    }

    #[test]
    fn only_ipv4_counts() {
        let found = ["10.8.0.101", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(ipv4(found.into_iter()), [Ipv4Addr::new(10, 8, 0, 101)]);
    }
}
