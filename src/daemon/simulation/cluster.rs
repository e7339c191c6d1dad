//! The nodes, the store and the course of one simulation: faults, then quiet, then the verdict.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use super::history;
use super::node::{self, Node, Times, now};
use super::owners::Owners;
use super::whole;
use crate::model::lease::key_of;
use crate::status::OwnLease;
use crate::store::seeded::Random;
use crate::store::{Backup, Memory};

/// Faults of a small and of a large simulation.
const STEPS: (u64, u64) = (40, 12);
/// From so many nodes on it is a large one.
const LARGE: usize = 50;
/// So many nodes join later.
const JOINING: u64 = 3;
/// How soon what was disturbed after the quiet must be whole again; much sooner than the daemon's own comparison.
const PROMPT: Duration = Duration::from_secs(25);
/// Much shorter than a lease's life, much longer than a request.
const SHORT: Duration = Duration::from_millis(250);
/// A daemon that gave up is started again after this time at most, as systemd does.
const RESTART: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) random: Random,
    pub(super) memory: Memory,
    pub(super) nodes: Vec<Node>,
    pub(super) owners: Arc<Mutex<Owners>>,
    pub(super) times: Times,
    /// Subnets `10.200.1.0/24` to this one.
    pub(super) subnets: u64,
    /// No more nodes than that join.
    pub(super) most: usize,
    /// How many subnets the operator may still take away, so that one is left for every node.
    pub(super) spare: u64,
    /// How many stores there were.
    pub(super) stores: u64,
    /// What the operator saved last.
    pub(super) backup: Option<Backup>,
    /// Nodes with the address of another one.
    pub(super) twins: BTreeSet<usize>,
    pub(super) had_twins: bool,
    seed: u64,
    addresses: u16,
    log: Vec<String>,
    folder: TempDir,
}

impl Cluster {
    pub(super) fn new(seed: u64, nodes: u64) -> Self {
        node::begin();
        let mut random = Random::new(seed);
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let times = Times { ttl: minutes(1 + random.below(4)), grace: minutes(1 + random.below(4)) };
        let spare = 1 + random.below(4);
        let in_memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(if in_memory.is_dir() { in_memory } else { Path::new("/tmp") });
        let mut cluster = Self {
            random,
            memory: Memory::default(),
            nodes: Vec::new(),
            owners: Arc::default(),
            times,
            subnets: nodes + JOINING + spare,
            most: usize::try_from(nodes + JOINING).unwrap(),
            spare,
            stores: 1,
            backup: None,
            twins: BTreeSet::new(),
            had_twins: false,
            seed,
            addresses: 0,
            log: Vec::new(),
            folder: folder.unwrap(),
        };
        cluster.write_config();
        (0..nodes).for_each(|_| cluster.add_node());
        cluster
    }

    pub(super) fn is_large(&self) -> bool {
        self.nodes.len() >= LARGE
    }

    pub(super) fn write_config(&self) {
        let config = format!(
            r#"{{"Network":"10.200.0.0/16","SubnetMin":"10.200.1.0","SubnetMax":"10.200.{}.0","Backend":{{"Type":"vxlan"}}}}"#,
            self.subnets
        );
        self.memory.set("/sim/config", &config, None);
    }

    /// An address that nobody had before.
    pub(super) fn fresh_address(&mut self) -> Ipv4Addr {
        self.addresses += 1;
        let [high, low] = (self.addresses + 256).to_be_bytes();
        Ipv4Addr::new(10, 8, high, low)
    }

    pub(super) fn join(&mut self) {
        self.add_node();
        self.start(self.nodes.len() - 1);
    }

    fn add_node(&mut self) {
        let address = self.fresh_address();
        let node = Node::new(self.nodes.len(), address, self.times, (self.folder.path(), &self.memory));
        self.nodes.push(node);
    }

    pub(super) fn start(&mut self, number: usize) {
        let seed = self.random.bits();
        self.nodes[number].start(&self.memory, seed, &self.owners);
    }

    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        history::note(&what);
        self.log.push(format!("{:>14.3} s  {what}", now().as_secs_f64()));
    }

    /// All daemons start at once, or a few at a time, as machines do that an operator goes through.
    async fn begin(&mut self) {
        let in_turn = !self.random.once_in(4);
        for number in 0..self.nodes.len() {
            self.start(number);
            if in_turn && self.random.once_in(10) {
                sleep(SHORT).await;
            }
        }
    }

    /// Runs the whole course.
    pub(super) async fn run(mut self) {
        self.begin().await;
        let large = self.is_large();
        for _ in 0..if large { STEPS.1 } else { STEPS.0 } {
            self.fault().await;
            let pause = self.pause();
            sleep(pause).await;
            self.check_owners();
            self.supervise().await;
        }
        self.heal();
        let quiet_until = now() + self.times.ttl + self.times.grace + Duration::from_secs(120);
        while now() < quiet_until {
            sleep(RESTART).await;
            self.supervise().await;
        }
        self.check_whole("after quiet");
        for number in 0..self.nodes.len() {
            self.disturb_kernel(number);
        }
        self.write_junk_or_peer();
        sleep(PROMPT).await;
        self.check_whole("after disturbed kernels");
        self.late_answer().await;
        self.nodes.iter().for_each(Node::note_operations);
    }

    /// A renewal's answer comes half a lifetime late, and then its node crashes: who counted from the answer would still say that
    /// the subnet is its own when another node, which had it before, has taken it.
    async fn late_answer(&mut self) {
        let number = usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap();
        let before = self.claim(number).unwrap();
        self.say(|| format!("node {number} hears late of the renewal of {}, and crashes", before.subnet));
        self.nodes[number].link.stop_with_renewal(self.times.ttl / 2);
        while self.claim(number).as_ref() == Some(&before) {
            sleep(SHORT).await;
        }
        self.nodes[number].crash();
        let key = format!("/sim/subnets/{}", key_of(before.subnet));
        while self.memory.read(&key).is_some() {
            sleep(SHORT).await;
        }
        self.add_node();
        let newcomer = self.nodes.len() - 1;
        self.nodes[newcomer].had_before(before.subnet);
        self.start(newcomer);
        sleep(20 * SHORT).await;
        assert_eq!(self.claim(newcomer).map(|claim| claim.subnet), Some(before.subnet), "{}", self.history());
        self.check_owners();
    }

    fn claim(&self, number: usize) -> Option<OwnLease> {
        self.owners.lock().unwrap().claim(number)
    }

    fn pause(&mut self) -> Duration {
        let ttl = u64::try_from(self.times.ttl.as_millis()).unwrap();
        let longest = match self.random.below(10) {
            8 if !self.is_large() => ttl * 2,
            0..=4 => 100,
            5..=7 => 20_000,
            _ => ttl / 2,
        };
        Duration::from_millis(self.random.below(longest))
    }

    /// Everything outside of the daemons is as it should be from now on.
    fn heal(&mut self) {
        self.say(|| "quiet".to_owned());
        self.memory.set_down(false);
        self.memory.fail(0);
        self.write_config();
        for number in std::mem::take(&mut self.twins) {
            self.move_node(number);
        }
        for number in 0..self.nodes.len() {
            self.nodes[number].link.heal();
            if !self.nodes[number].runs() {
                self.start(number);
            }
        }
    }

    fn check_owners(&self) {
        let owners = self.owners.lock().unwrap();
        assert!(owners.broken.is_empty(), "{}\n{}", self.history(), owners.broken.join("\n"));
    }

    /// A daemon gives up in one case only: another machine has its address, or had it when it wrote last.
    async fn supervise(&mut self) {
        for number in 0..self.nodes.len() {
            let Some(reason) = self.nodes[number].gave_up().await else { continue };
            let of_twins = self.had_twins && reason.contains("is already used by another node");
            assert!(of_twins, "{}\nnode {number} gave up: {reason}", self.history());
            self.say(|| format!("node {number} gave up and is started again: {reason}"));
            self.start(number);
        }
    }

    fn check_whole(&self, when: &str) {
        self.check_owners();
        let leases = whole::valid(&self.memory);
        let mut held = BTreeSet::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let kernel = node.kernel.lock();
            match whole::problem(&leases, node.public_ip, &kernel.state) {
                Ok(subnet) => assert!(held.insert(subnet), "two nodes hold {subnet}"),
                Err(problem) => {
                    let content: Vec<_> = self.memory.content().into_keys().collect();
                    let history = self.history();
                    panic!(
                        "{history}\n{when}: node {number} at {}: {problem}\nkeys: {content:?}",
                        node.public_ip
                    )
                }
            }
        }
    }

    fn history(&self) -> String {
        let (seed, times, nodes) = (self.seed, self.times, self.nodes.len());
        format!("seed {seed}, {nodes} nodes, {} subnets, {times:?}\n{}", self.subnets, self.log.join("\n"))
    }
}
