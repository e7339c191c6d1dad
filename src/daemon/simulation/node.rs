//! One node: a kernel and a file that stay, and a daemon that comes and goes.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::history;
use super::link::Link;
use super::owners::Owners;
use crate::clock::Clock;
use crate::daemon::{self, Fatal, Inputs, Reporter, Settings};
use crate::kernel::Change;
use crate::kernel::fake::SharedKernel;
use crate::model::host::{DefaultRoute, Host, HostAddress, HostLink};
use crate::model::{BootId, Mtu};
use crate::notify::Notifier;
use crate::options::{self, Invocation, Options, Outside};
use crate::store::{Etcd, Memory};
use crate::subnet_env::{SubnetEnv, file};

/// Ten years: a process that was killed does not go on.
const FOR_EVER: Duration = Duration::from_secs(315_360_000);

/// Where the store is, for the rule that no peer's subnet may cover it.
const STORE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);

thread_local! {
    static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Time begins here, for every node of this thread.
pub(super) fn begin() {
    ORIGIN.set(Some(Instant::now()));
}

fn origin() -> Instant {
    ORIGIN.get().unwrap()
}

/// Time since the beginning.
pub(super) fn now() -> Duration {
    origin().elapsed()
}

/// How long things live in one simulation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) ttl: Duration,
    pub(super) grace: Duration,
}

#[derive(Debug)]
pub(super) struct Node {
    number: usize,
    times: Times,
    file: PathBuf,
    pub(super) public_ip: Ipv4Addr,
    pub(super) kernel: SharedKernel,
    /// Way to the store of the daemon that runs, or ran last.
    pub(super) link: Link,
    daemon: Option<JoinHandle<Result<(), Fatal>>>,
    /// How often the machine was started.
    boots: u32,
}

impl Node {
    /// A node whose daemon does not run yet.
    pub(super) fn new(
        number: usize,
        public_ip: Ipv4Addr,
        times: Times,
        (folder, memory): (&Path, &Memory),
    ) -> Self {
        let file = folder.join(number.to_string()).join("subnet.env");
        let link = Link::new(memory.clone(), 0);
        let node = Self {
            number,
            times,
            file,
            public_ip,
            kernel: SharedKernel::default(),
            link,
            daemon: None,
            boots: 1,
        };
        node.set_address(public_ip);
        node
    }

    fn set_address(&self, ip: Ipv4Addr) {
        let name: crate::model::IfName = "wg0".parse().unwrap();
        let address = HostAddress { ip, permanent: true, secondary: false, deprecated: false };
        let default_routes = vec![DefaultRoute { device: Some(name.clone()) }];
        let links = vec![HostLink { name, mtu: 1420, addresses: vec![address] }];
        self.kernel.disturb(|kernel| {
            kernel.host = Host { links, default_routes, kernel: None };
            kernel.queue.push(Change::Underlay);
        });
    }

    /// The external interface has another address.
    pub(super) fn move_to(&mut self, public_ip: Ipv4Addr) {
        self.public_ip = public_ip;
        self.set_address(public_ip);
    }

    /// The node's disk remembers this subnet.
    pub(super) fn had_before(&self, subnet: Ipv4Network) {
        let network = "10.200.0.0/16".parse().unwrap();
        let env = SubnetEnv { network, subnet, mtu: Mtu::try_from(1370).unwrap(), ip_masq: false };
        file::write_if_changed(&self.file, &env.render()).unwrap();
    }

    pub(super) fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    fn options(&self) -> Options {
        let outside = Outside {
            read: &|_| Err("there is no configuration file".to_owned()),
            facts: Arc::new(|| panic!("facts are for configuration files")),
        };
        let Invocation::Run(configured) = options::read(["flanneld".into()], [], &outside).unwrap() else {
            panic!("not a run")
        };
        let mut options = configured.options;
        options.subnet_file.clone_from(&self.file);
        options.lease.ttl = self.times.ttl;
        options.lease.renew_margin = self.times.ttl / 3;
        options.lease.peer_grace = self.times.grace;
        options
    }

    fn settings(&self, options: &Options) -> Settings {
        let previous = file::read_previous(&self.file).unwrap();
        let settings = Settings::new(options, Some(&format!("node {}", self.number)), &previous);
        let boot_id = BootId::from_kernel(&format!("start {} of machine {}", self.boots, self.number));
        Settings { watch_file: false, firewall: None, store_addresses: vec![STORE], boot_id, ..settings }
    }

    /// Starts the daemon with a way to the store whose accidents follow from `seed`.
    pub(super) fn start(&mut self, memory: &Memory, seed: u64, owners: &Arc<Mutex<Owners>>) {
        self.link = Link::new(memory.clone(), seed);
        let (reporter, questions, served) = Reporter::new(Notifier::new(None).unwrap(), now);
        let store = Etcd::new(self.link.clone(), "/sim");
        let options = self.options();
        let (settings, kernel, gate) = (self.settings(&options), self.kernel.clone(), self.link.gate.clone());
        let inputs = Inputs { stop: std::future::pending(), questions, options: watch::channel(options).1 };
        let daemon = daemon::run(settings, store, kernel, (Clock::Tokio(origin()), reporter), inputs);
        self.daemon = Some(tokio::spawn(async move { gate.run(daemon).await }));
        let (number, owners, mut status) = (self.number, owners.clone(), served.health.status);
        tokio::spawn(async move {
            while status.changed().await.is_ok() {
                owners.lock().unwrap().note(number, &status.borrow_and_update(), now());
            }
        });
    }

    /// SIGKILL. Requests that are on their way arrive all the same.
    pub(super) fn crash(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.abort();
        }
        self.link.gate.stop_for(FOR_EVER);
    }

    /// The machine restarts: a fresh kernel, and `/run` is empty.
    pub(super) fn reboot(&mut self) {
        self.crash();
        let _ = std::fs::remove_file(&self.file);
        self.boots += 1;
        self.note_operations();
        self.kernel = SharedKernel::default();
        self.set_address(self.public_ip);
    }

    /// What the daemons have asked of this kernel becomes part of the history.
    pub(super) fn note_operations(&self) {
        let kernel = self.kernel.lock();
        history::note((&kernel.steps, &kernel.operations));
    }

    /// Why the daemon gave up, if it did.
    pub(super) async fn gave_up(&mut self) -> Option<String> {
        let daemon = self.daemon.take_if(|daemon| daemon.is_finished())?;
        daemon.await.unwrap().err().map(|error| error.to_string())
    }
}
