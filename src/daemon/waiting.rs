//! A wait at the start: what is wrong is logged when it changes, status and systemd hear of it each time, and there is a pause.
//! It decides nothing: whoever waits tries again. Also what to write while it is the network config that is missing.

use std::time::Duration;

use tracing::error;

use super::Reporter;
use crate::model::two_stores::Origin;
use crate::status::Phase;

/// Pause between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// One thing that is waited for.
#[derive(Debug)]
pub(super) struct Waiting {
    what: &'static str,
    said: String,
}

impl Waiting {
    /// A wait for `what`, e.g. `a subnet`.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, said: String::new() }
    }

    /// Reports why the last try failed, and pauses before the next.
    pub(super) async fn pause(&mut self, problem: String, phase: Phase, reporter: &mut Reporter) {
        if problem != self.said {
            error!(%problem, "waiting for {}", self.what);
            self.said = problem;
        }
        reporter.waiting(phase);
        tokio::time::sleep(RETRY).await;
    }
}

/// What is said of a `store` without a network config.
pub(super) fn no_config(store: &str, api: Origin, key: &str) -> String {
    format!("there is no network config yet: write one to {store}, e.g. {}", config_example(api, key))
}

/// The command that writes a network config with `api`, for whoever has to. It names the API, since etcdctl's default is v2 up to
/// etcd 3.3 and v3 from 3.4 on, and a config in the other store is not seen.
pub(super) fn config_example(api: Origin, key: &str) -> String {
    let command = match api {
        Origin::V2 => "ETCDCTL_API=2 etcdctl set",
        Origin::V3 => "ETCDCTL_API=3 etcdctl put",
    };
    format!(r#"{command} {key} '{{"Network":"10.200.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_config_is_written_with_the_api_of_its_store() {
        let key = "/coreos.com/network/config";
        let config = r#"'{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}'"#;
        for (api, store, command) in [
            (Origin::V2, "etcd v2 at http://10.8.0.101:2379", "ETCDCTL_API=2 etcdctl set"),
            (Origin::V3, "etcd v3 at http://10.8.0.101:2379", "ETCDCTL_API=3 etcdctl put"),
        ] {
            assert_eq!(
                no_config(store, api, key),
                format!(
                    "there is no network config yet: write one to {store}, e.g. {command} {key} {config}"
                )
            );
        }
    }
}
