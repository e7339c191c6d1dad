//! Which of etcd's two APIs holds the network: as the operator says, or found out.
//!
//! The two are separate stores in one server. They are used together only while a cluster moves from one to the other: when the
//! operator says so, or when [`judge`] finds a move under way.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::mpsc::Sender;

use super::auto::{Ourselves, Verdict, is_missing, judge};
use super::{
    Both, Config, Etcd, EtcdV2, EtcdV3, Held, LeaseStore, Record, Renewal, Revision, Snapshot, StoreError,
    Update, Written,
};
use crate::model::LeaseAttrs;
use crate::model::two_stores::Origin;

/// The option `etcd-api`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Api {
    /// The one that holds the network config; if both do, v2 as long as another node lives there (and a copy in v3), else v3.
    #[default]
    Auto,
    /// v2, as Go flannel up to v0.16.
    V2,
    /// v3, as Go flannel from v0.18 on.
    V3,
    /// Both at once, for moving from v2 to v3: v2 decides.
    Both,
}

impl Api {
    /// What can be given, for messages.
    pub const EXPECTED: &str = "auto, v2, v3 or both";
}

impl FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "v2" => Ok(Self::V2),
            "v3" => Ok(Self::V3),
            "both" => Ok(Self::Both),
            _ => Err(format!("{text:?} is no etcd API (expected {})", Self::EXPECTED)),
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::Both => "both",
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
    /// Both; v2 decides.
    Both(Both<EtcdV2, EtcdV3>),
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

    /// Looks once. A lease of `own` does not keep v2 alive.
    ///
    /// # Errors
    /// When a store that has to be asked cannot be.
    pub async fn choose(&self, own: Ourselves) -> Result<Choice, StoreError> {
        let told = || format!("etcd-api={}", self.api);
        match self.api {
            Api::V2 => Ok(Choice::Chosen(Store::V2(self.v2.clone()), told())),
            Api::V3 => Ok(Choice::Chosen(Store::V3(self.v3.clone()), told())),
            Api::Both => Ok(Choice::Chosen(Store::Both(self.both()), told())),
            Api::Auto => self.look(own).await,
        }
    }

    /// Writes the network config if there is none, and never over one: into the store that was told; into v3 with `auto`, since
    /// every etcd 3 serves that, and into each with `both`, but then only if neither holds one. Says where; `None`: nowhere.
    ///
    /// # Errors
    /// When a store that has to be asked cannot be.
    pub async fn seed(&self, config: &str) -> Result<Option<&'static str>, StoreError> {
        let missing = match self.api {
            Api::V2 | Api::V3 => true,
            Api::Auto | Api::Both => is_missing(&self.v2, &self.v3).await?,
        };
        let config = config.as_bytes();
        let (written, store) = match self.api {
            _ if !missing => return Ok(None),
            Api::V2 => (self.v2.create_config(config).await?, "v2"),
            Api::V3 | Api::Auto => (self.v3.create_config(config).await?, "v3"),
            // v2 decides, so it comes first.
            Api::Both => {
                (self.v2.create_config(config).await? | self.v3.create_config(config).await?, "both")
            }
        };
        Ok(written.then_some(store))
    }

    async fn look(&self, own: Ourselves) -> Result<Choice, StoreError> {
        Ok(match judge(&self.v2, &self.v3, own).await? {
            Verdict::V2(reason) => Choice::Chosen(Store::V2(self.v2.clone()), reason),
            Verdict::V3(reason) => Choice::Chosen(Store::V3(self.v3.clone()), reason),
            Verdict::V2AndCopy(reason) => Choice::Chosen(Store::Both(self.both().without_config()), reason),
            Verdict::Missing(text) => Choice::Missing(text),
        })
    }

    fn both(&self) -> Both<EtcdV2, EtcdV3> {
        Both::new(self.v2.clone(), self.v3.clone())
    }

    /// The key of the network config, for messages. It is the same in both.
    #[must_use]
    pub fn config_key(&self) -> String {
        self.v3.config_key()
    }

    /// Words for logs: the endpoints, without secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.api {
            Api::V2 => self.v2.describe(),
            Api::V3 | Api::Auto | Api::Both => self.v3.describe(),
        }
    }
}

/// Calls the same method of whichever store it is.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Store::V2(store) => store.$method($($argument),*).await,
            Store::V3(store) => store.$method($($argument),*).await,
            Store::Both(store) => store.$method($($argument),*).await,
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

    async fn watch(&self, next: Revision, sink: Sender<Update>) -> Infallible {
        either!(self.watch(next, sink))
    }

    fn reconnect(&self) {
        match self {
            Self::V2(store) => store.reconnect(),
            Self::V3(store) => store.reconnect(),
            Self::Both(store) => store.reconnect(),
        }
    }

    fn config_key(&self) -> String {
        match self {
            Self::V2(store) => store.config_key(),
            Self::V3(store) => store.config_key(),
            Self::Both(store) => store.config_key(),
        }
    }

    fn decides(&self) -> Origin {
        match self {
            Self::V2(store) => store.decides(),
            Self::V3(store) => store.decides(),
            Self::Both(store) => store.decides(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::V2(store) => store.describe(),
            Self::V3(store) => store.describe(),
            Self::Both(store) => store.describe(),
        }
    }
}
