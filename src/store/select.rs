//! Which of etcd's two APIs holds the network: as the operator says, or found out.
//!
//! Never mixes the two: they are separate stores in one server.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::mpsc::Sender;

use super::{
    Config, Etcd, EtcdV2, EtcdV3, Held, LeaseStore, Record, Renewal, Revision, Snapshot, StoreError, Update,
    Written,
};
use crate::model::LeaseAttrs;

/// The option `etcd-api`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Api {
    /// The one that holds the network config.
    #[default]
    Auto,
    /// v2, as Go flannel up to v0.16.
    V2,
    /// v3, as Go flannel from v0.18 on.
    V3,
}

impl FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "v2" => Ok(Self::V2),
            "v3" => Ok(Self::V3),
            _ => Err(format!("{text:?} is no etcd API (expected auto, v2 or v3)")),
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

/// A store of either kind.
#[derive(Clone)]
pub enum Store {
    /// etcd v2.
    V2(Etcd<EtcdV2>),
    /// etcd v3.
    V3(Etcd<EtcdV3>),
}

/// What came of looking for the network.
pub enum Choice {
    /// This store, and why.
    Chosen(Store, String),
    /// No store holds a config yet: ask again later. The text says where it was looked for.
    Missing(String),
}

/// Both stores, until one is chosen.
#[derive(Clone)]
pub struct Candidates {
    api: Api,
    v2: Etcd<EtcdV2>,
    v3: Etcd<EtcdV3>,
}

impl Candidates {
    /// Prepares connections; nothing is sent yet. The TLS files are read once, so that a wrong one is named at once.
    ///
    /// # Errors
    /// When an endpoint or a TLS file cannot be used.
    pub fn new(config: &Config, api: Api) -> Result<Self, StoreError> {
        super::tls::check(config)?;
        Ok(Self {
            api,
            v2: Etcd::new(EtcdV2::new(config)?, &config.prefix),
            v3: Etcd::new(EtcdV3::new(config)?, &config.prefix),
        })
    }

    /// Looks once. `own` is our public IP: a lease with it does not keep v2 alive.
    ///
    /// # Errors
    /// When a store that has to be asked cannot be.
    pub async fn choose(&self, own: Option<Ipv4Addr>) -> Result<Choice, StoreError> {
        let told = || format!("etcd-api={}", self.api);
        match self.api {
            Api::V2 => Ok(Choice::Chosen(Store::V2(self.v2.clone()), told())),
            Api::V3 => Ok(Choice::Chosen(Store::V3(self.v3.clone()), told())),
            Api::Auto => self.look(own).await,
        }
    }

    async fn look(&self, own: Option<Ipv4Addr>) -> Result<Choice, StoreError> {
        let (v2, v3) = tokio::join!(self.v2.network_config(), self.v3.network_config());
        let key = self.v3.config_key();
        let v2 = match v2 {
            Ok(found) => found.is_some(),
            // An answer, though not one of the v2 API: the server does not speak it.
            Err(StoreError::Refused { .. }) if v3.is_ok() => false,
            Err(error) => return Err(error),
        };
        let v3 = match v3 {
            Ok(found) => found.is_some(),
            // The same servers answered v2: they do not speak v3.
            Err(_) if v2 => false,
            Err(error) => return Err(error),
        };
        match (v2, v3) {
            (true, false) => Ok(self.chosen_v2(format!("{key} exists only in the v2 store"))),
            (false, true) => Ok(self.chosen_v3(format!("{key} exists only in the v3 store"))),
            (false, false) => {
                Ok(Choice::Missing(format!("{key} exists neither in the v3 nor in the v2 store")))
            }
            (true, true) => self.compare(own).await,
        }
    }

    /// Both hold a config: v2 as long as another node lives there.
    async fn compare(&self, own: Option<Ipv4Addr>) -> Result<Choice, StoreError> {
        let key = self.v3.config_key();
        let records = self.v2.list().await?.records;
        let others = records.iter().filter(|record| is_of_another_node(record, own)).count();
        Ok(match others {
            0 => self.chosen_v3(format!("{key} exists in both stores and no other node holds a lease in v2")),
            1 => self.chosen_v2(format!("{key} exists in both stores and another node holds a lease in v2")),
            _ => self
                .chosen_v2(format!("{key} exists in both stores and {others} other nodes hold leases in v2")),
        })
    }

    fn chosen_v2(&self, reason: String) -> Choice {
        Choice::Chosen(Store::V2(self.v2.clone()), reason)
    }

    fn chosen_v3(&self, reason: String) -> Choice {
        Choice::Chosen(Store::V3(self.v3.clone()), reason)
    }

    /// Words for logs: the endpoints, without secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.api {
            Api::V2 => self.v2.describe(),
            Api::V3 | Api::Auto => self.v3.describe(),
        }
    }
}

/// A reservation is no sign of life: nobody renews it.
fn is_of_another_node(record: &Record, own: Option<Ipv4Addr>) -> bool {
    record.lease.is_some()
        && LeaseAttrs::from_json(&record.value).is_ok_and(|attrs| Some(attrs.public_ip) != own)
}

/// Calls the same method of whichever store it is.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Store::V2(store) => store.$method($($argument),*).await,
            Store::V3(store) => store.$method($($argument),*).await,
        }
    };
}

impl LeaseStore for Store {
    async fn network_config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        either!(self.network_config())
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        either!(self.list())
    }

    async fn create(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        either!(self.create(subnet, attrs, ttl))
    }

    async fn update(
        &self,
        subnet: Ipv4Network,
        record: &Record,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Written, StoreError> {
        either!(self.update(subnet, record, attrs, ttl))
    }

    async fn renew(&self, held: &Held, ttl: Duration) -> Result<Renewal, StoreError> {
        either!(self.renew(held, ttl))
    }

    async fn delete(&self, subnet: Ipv4Network, modified: Revision) -> Result<bool, StoreError> {
        either!(self.delete(subnet, modified))
    }

    async fn watch(&self, next: Revision, sink: Sender<Update>) {
        either!(self.watch(next, sink));
    }

    fn config_key(&self) -> String {
        match self {
            Self::V2(store) => store.config_key(),
            Self::V3(store) => store.config_key(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::V2(store) => store.describe(),
            Self::V3(store) => store.describe(),
        }
    }
}
