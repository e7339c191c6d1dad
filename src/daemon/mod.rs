//! The daemon: a start that ends with a lease, then one loop. Speaks to store and kernel through their traits.
//!
//! ```text
//! bootstrap: config, interface, device seen once, lease ──► running: change | notification | renew | retry | stop
//!                                                              │
//!                                     data_plane (kernel) ◄────┼────► acquire (store), subnet_file
//!                                                              └────► reporter (status, metrics, systemd, log)
//! ```

mod acquire;
mod bootstrap;
mod choose_store;
mod contest;
mod culprit;
mod data_plane;
mod pods;
mod reporter;
mod rules;
mod running;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod store_names;
mod subnet_file;
mod underlay;
mod waiting;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::watch;

pub use choose_store::choose_store;
pub use reporter::{Published, Questions, Reporter};
pub use store_names::look_up as look_up_store_names;
use subnet_file::SubnetFile;

use crate::clock::Clock;
use crate::firewall::Preference;
use crate::kernel::{Kernel, KernelError};
use crate::model::ext_iface::{Selector, selectors};
use crate::model::lease_set::{LeaseSet, Own};
use crate::model::masquerade::{Overlay, RuleOptions};
use crate::model::{BootId, NodeId, TxChecksum};
use crate::options::{self, Options};
use crate::store::LeaseStore;
use crate::subnet_env::Previous;
use data_plane::{DataPlane, Wanted};
use running::{Below, Running};

/// What the daemon needs to know, put together from options and host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How the external interface is chosen.
    pub selectors: Vec<Selector>,
    /// The address published to the peers, if it is not the interface's.
    pub public_ip: Option<Ipv4Addr>,
    /// Our machine, if it has an id.
    pub node_id: Option<NodeId>,
    /// Our machine's run since its last boot, if the kernel tells.
    pub boot_id: Option<BootId>,
    /// The subnet of a former run.
    pub previous_subnet: Option<Ipv4Network>,
    /// Where subnet.env is written.
    pub subnet_file: PathBuf,
    /// Notice at once what others do to subnet.env (`inotify(7)`), not only with the next comparison.
    pub watch_file: bool,
    /// What subnet.env says about masquerading.
    pub ip_masq: bool,
    /// How long a lease lives without renewal.
    pub lease_ttl: Duration,
    /// How long before its end it is renewed.
    pub renew_margin: Duration,
    /// Drop what is sent to our own subnet while no pod bridge has it.
    pub blackhole: bool,
    /// How long peers are kept that a replaced store does not list.
    pub peer_grace: Duration,
    /// Which firewall rules are wanted.
    pub rules: RuleOptions,
    /// Which firewall holds them; `None`: nobody keeps rules, as in a simulation, which has no host.
    pub firewall: Option<Preference>,
    /// How often rules are looked at where the kernel does not report changes.
    pub firewall_resync: Duration,
    /// What the rules of a former run were made for.
    pub previous_overlay: Option<Overlay>,
    /// TX checksum offload of the device, if this node is told; else the network config says.
    pub tx_checksum: Option<TxChecksum>,
    /// Addresses of the store, which must stay reachable outside of the overlay.
    pub store_addresses: Vec<Ipv4Addr>,
}

impl Settings {
    /// Puts the settings together. `machine_id` is the content of `/etc/machine-id`.
    #[must_use]
    pub fn new(options: &Options, machine_id: Option<&str>, previous: &Previous) -> Self {
        let iface = &options.iface;
        let firewall = &options.firewall;
        let former = |(network, subnet)| Overlay { network, subnet };
        Self {
            selectors: selectors(&iface.ifaces, &iface.regexes, iface.can_reach, iface.public_ip),
            public_ip: iface.public_ip,
            node_id: machine_id.filter(|id| !id.trim().is_empty()).map(NodeId::from_machine_id),
            boot_id: None,
            previous_subnet: previous.subnet,
            subnet_file: options.subnet_file.clone(),
            watch_file: true,
            ip_masq: options.firewall.ip_masq,
            lease_ttl: options.lease.ttl,
            renew_margin: options.lease.renew_margin,
            peer_grace: options.lease.peer_grace,
            blackhole: options.blackhole,
            rules: rule_options(firewall),
            firewall: Some(firewall.preference),
            firewall_resync: firewall.resync,
            previous_overlay: previous.network.zip(previous.subnet).map(former),
            tx_checksum: options.tx_checksum,
            store_addresses: store_names::literal(&options.etcd.endpoints),
        }
    }

    /// Takes from `options` what can change while the daemon runs (`live` in the table of options).
    fn adjust(&mut self, options: &Options) {
        self.ip_masq = options.firewall.ip_masq;
        self.renew_margin = options.lease.renew_margin;
        self.rules = rule_options(&options.firewall);
        self.firewall_resync = options.firewall.resync;
    }
}

fn rule_options(firewall: &options::Firewall) -> RuleOptions {
    RuleOptions {
        ip_masq: firewall.ip_masq,
        forward_rules: firewall.forward_rules,
        fully_random: firewall.fully_random,
        exclude: firewall.exclude.clone(),
    }
}

/// Why the daemon gives up: only the operator can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The network config asks for something that is not built, or the connection is misconfigured.
    #[error("{0}")]
    Config(String),
    /// No external interface, or an unusable one.
    #[error("{0}")]
    Interface(String),
    /// Another node has our public IP.
    #[error("{0}")]
    Lease(String),
    /// The kernel cannot even be read.
    #[error("cannot work with this kernel: {0}")]
    Kernel(#[from] KernelError),
}

/// What the daemon listens to beside its own work.
#[derive(Debug)]
pub struct Inputs<S> {
    /// Ends when the daemon is to stop.
    pub stop: S,
    /// Questions whether the loop turns, and what it holds.
    pub questions: Questions,
    /// The options, each time they have been read again.
    pub options: watch::Receiver<Options>,
}

/// Runs until told to stop. The data plane stays up afterwards.
///
/// # Errors
/// When only the operator can help.
pub async fn run<S: LeaseStore, K: Kernel>(
    mut settings: Settings,
    store: S,
    mut kernel: K,
    (clock, mut reporter): (Clock, Reporter),
    inputs: Inputs<impl Future<Output = ()>>,
) -> Result<(), Fatal> {
    let Inputs { stop, mut questions, mut options } = inputs;
    let mut stop = std::pin::pin!(stop);
    reporter.store(store.describe());
    let started = tokio::select! {
        started = bootstrap::start(&settings, &store, &mut kernel, &mut reporter, clock.teller()) => started?,
        () = &mut stop => return Ok(()),
        () = questions.answer_all() => return Ok(()),
    };
    let lease = &started.acquired.lease.held;
    let network = started.claim.config.network;
    let chosen = (started.choice, started.underlay);
    let below = Below::new(&mut kernel, chosen, &settings.store_addresses);
    let own = Own {
        network,
        subnet: lease.subnet,
        public_ip: started.claim.public_ip,
        mac: started.vtep.mac,
        vni: started.vtep.vni,
        underlay: below.needed.clone(),
    };
    let wanted = Wanted {
        address: lease.subnet.network(),
        vtep: started.vtep,
        network,
        direct_routing: started.claim.config.vxlan.direct_routing,
        blackhole: settings.blackhole,
    };
    let leases = LeaseSet::new(own).with_grace(settings.peer_grace);
    let data_plane = DataPlane::new(kernel, leases, wanted);
    let lease = (started.claim, started.acquired);
    settings.adjust(&options.borrow_and_update());
    let planes = (data_plane, started.first_look);
    let running = Running::new((store, clock, reporter), settings, below, lease, planes);
    running.run(Inputs { stop, questions, options }).await
}
