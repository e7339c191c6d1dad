//! The lease protocol, model-checked: every order in which requests, answers, crashes, expiries and late messages can meet.
//!
//! The nodes decide with the daemon's own [`decide`]. What surrounds it here is etcd reduced to keys with revisions and
//! deadlines, and the rules the daemon keeps: every write is conditional on the revision it was decided on, a lease is
//! counted from the moment its request was *sent*, and past that time a node is no owner, whatever the store may say.
//!
//! ```text
//! Ask ─► (in flight) ─► Process: the store acts ─► (in flight) ─► Deliver: the node learns
//!   any of the two can be lost, and a request that was given up can still arrive later
//! ```
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flanneld::model::acquire::{Claimant, Decision, Listed, decide};
use flanneld::model::{LeaseAttrs, MacAddr, NetworkConfig, NodeId, VxlanData};
use ipnetwork::Ipv4Network;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// How long a lease lives, in ticks; renewed when one tick is left.
const TTL: u8 = 2;

type Node = usize;
type Subnet = u8;

/// What is explored.
#[derive(Clone)]
struct Protocol {
    nodes: usize,
    config: NetworkConfig,
    /// The model ends there.
    ticks: u8,
    /// How many crashes, losses and late ticks of a node's clock one run may contain, together.
    faults: u8,
    /// Node 0's clock may stand still for a tick: it believes in its lease longer than the store does.
    slow_clock: bool,
    /// The store may come back as it was two ticks ago, once.
    rollback: bool,
}

/// A key of the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    node: Node,
    modified: u8,
    deadline: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store {
    keys: BTreeMap<Subnet, Key>,
    revision: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Request {
    List,
    Create(Subnet),
    /// Prolong the key if it is still the one written at this revision.
    Renew(Subnet, u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Answer {
    Listing(BTreeMap<Subnet, Key>),
    Held(Subnet, u8),
    Conflict,
}

/// A lease as its node believes in it, counted on the node's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Own {
    subnet: Subnet,
    modified: u8,
    expires: u8,
}

/// A conversation that is going on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    request: Request,
    sent: u8,
    answer: Option<Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct NodeState {
    /// subnet.env: survives a crash.
    previous: Option<Subnet>,
    own: Option<Own>,
    listing: Option<BTreeMap<Subnet, Key>>,
    asked: Option<Asked>,
    /// How far its clock is behind.
    behind: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    store: Store,
    /// The store of each past tick, as far as a rollback could need it.
    backups: Vec<Store>,
    nodes: Vec<NodeState>,
    /// A request that its node has given up and that is still under way.
    late: Option<(Node, Request)>,
    faults: u8,
    rolled_back: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Expire(Subnet),
    Ask(Node, Request),
    Process(Node),
    Deliver(Node),
    /// The node gives up; its request is lost, or arrives later.
    GiveUp(Node, bool),
    Late,
    Crash(Node),
    /// Node 0's clock stands still while the world goes on.
    SlowTick,
    RollBack,
}

impl Protocol {
    fn new(nodes: usize, subnets: u8, ticks: u8, faults: u8) -> Self {
        let config = format!(
            r#"{{"Network":"10.0.0.0/16","SubnetMax":"10.0.{subnets}.0","Backend":{{"Type":"vxlan"}}}}"#
        );
        let config = NetworkConfig::from_json(config.as_bytes()).unwrap();
        Self { nodes, config, ticks, faults, slow_clock: false, rollback: false }
    }

    fn public_ip(node: Node) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, u8::try_from(node).unwrap() + 1)
    }

    fn network(subnet: Subnet) -> Ipv4Network {
        Ipv4Network::new(Ipv4Addr::new(10, 0, subnet, 0), 24).unwrap()
    }

    fn subnet(network: Ipv4Network) -> Subnet {
        network.network().octets()[2]
    }

    /// What the daemon's own code decides on a listing.
    fn decide(&self, node: Node, state: &NodeState, listing: &BTreeMap<Subnet, Key>) -> Vec<Request> {
        let id = |node: Node| NodeId::from_machine_id(&format!("machine {node}"));
        let mac = |node: Node| MacAddr::new([2, 0, 0, 0, 0, u8::try_from(node).unwrap()]);
        let listed = listing.iter().enumerate().map(|(index, (subnet, key))| {
            let data = VxlanData { vni: 1, mac: mac(key.node) };
            let attrs = LeaseAttrs::vxlan(Self::public_ip(key.node), data, Some(id(key.node)));
            Listed { index, subnet: Self::network(*subnet), attrs: Some(attrs) }
        });
        let claimant = Claimant {
            config: &self.config,
            public_ip: Self::public_ip(node),
            node_id: Some(id(node)),
            previous: state.previous.map(Self::network),
            mac: Some(mac(node)),
        };
        match decide(&claimant, listed.collect()) {
            Decision::Adopt(lease) => {
                let subnet = Self::subnet(lease.subnet);
                vec![Request::Renew(subnet, listing[&subnet].modified)]
            }
            Decision::Create(candidates) => {
                candidates.into_iter().map(|network| Request::Create(Self::subnet(network))).collect()
            }
            Decision::OutOfSubnets => vec![Request::List],
            Decision::Release(_) | Decision::Refuse { .. } => unreachable!("no such leases here"),
        }
    }

    fn clock(state: &State, node: Node) -> u8 {
        state.now - state.nodes[node].behind
    }

    fn owns(state: &State, node: Node) -> Option<Subnet> {
        let own = state.nodes[node].own?;
        (Self::clock(state, node) < own.expires).then_some(own.subnet)
    }

    /// What a node that waits for nothing does next. One that owns a lease renews it when a tick is left.
    fn next_requests(&self, state: &State, node: Node) -> Vec<Request> {
        let it = &state.nodes[node];
        if it.asked.is_some() {
            return Vec::new();
        }
        match (it.own, &it.listing) {
            (Some(own), _) if Self::clock(state, node) + 1 < own.expires => Vec::new(),
            (Some(own), _) => vec![Request::Renew(own.subnet, own.modified)],
            (None, None) => vec![Request::List],
            (None, Some(listing)) => self.decide(node, it, listing),
        }
    }
}

impl Store {
    fn act(&mut self, node: Node, request: &Request, now: u8) -> Answer {
        match *request {
            Request::List => Answer::Listing(self.keys.clone()),
            Request::Create(subnet) if self.keys.contains_key(&subnet) => Answer::Conflict,
            Request::Create(subnet) => {
                self.revision += 1;
                let modified = self.revision;
                self.keys.insert(subnet, Key { node, modified, deadline: now + TTL });
                Answer::Held(subnet, modified)
            }
            Request::Renew(subnet, modified) => match self.keys.get_mut(&subnet) {
                Some(key) if key.node == node && key.modified == modified => {
                    key.deadline = now + TTL;
                    Answer::Held(subnet, modified)
                }
                _ => Answer::Conflict,
            },
        }
    }
}

impl NodeState {
    fn learn(&mut self, asked: Asked) {
        match asked.answer.unwrap() {
            Answer::Listing(listing) => self.listing = Some(listing),
            Answer::Held(subnet, modified) => {
                self.own = Some(Own { subnet, modified, expires: asked.sent + TTL });
                self.previous = Some(subnet);
                self.listing = None;
            }
            Answer::Conflict => (self.own, self.listing) = (None, None),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nodes = vec![NodeState::default(); self.nodes];
        let store = Store::default();
        let backups = Vec::new();
        vec![State { now: 0, store, backups, nodes, late: None, faults: 0, rolled_back: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // A node that has something to ask asks at once; what takes time is the way there and back.
        let idle = (0..self.nodes).all(|node| self.next_requests(state, node).is_empty());
        let time_goes_on = idle && state.now < self.ticks;
        if time_goes_on {
            actions.push(Action::Tick);
        }
        let over = state.store.keys.iter().filter(|(_, key)| key.deadline <= state.now);
        actions.extend(over.map(|(subnet, _)| Action::Expire(*subnet)));
        if state.late.is_some() {
            actions.push(Action::Late);
        }
        let faulty = state.faults < self.faults;
        for node in 0..self.nodes {
            actions.extend(
                self.next_requests(state, node).into_iter().map(|request| Action::Ask(node, request)),
            );
            if let Some(asked) = &state.nodes[node].asked {
                actions.push(if asked.answer.is_none() {
                    Action::Process(node)
                } else {
                    Action::Deliver(node)
                });
                if faulty {
                    actions.push(Action::GiveUp(node, false));
                    if asked.answer.is_none() && state.late.is_none() {
                        actions.push(Action::GiveUp(node, true));
                    }
                }
            }
            if faulty && state.nodes[node] != NodeState::default() {
                actions.push(Action::Crash(node));
            }
        }
        if faulty && self.slow_clock && time_goes_on {
            actions.push(Action::SlowTick);
        }
        if self.rollback && !state.rolled_back && state.backups.len() >= 2 {
            actions.push(Action::RollBack);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => state.tick(self.rollback),
            Action::SlowTick => {
                state.tick(self.rollback);
                state.nodes[0].behind += 1;
                state.faults += 1;
            }
            Action::Expire(subnet) => drop(state.store.keys.remove(&subnet)),
            Action::Ask(node, request) => {
                let sent = Self::clock(&state, node);

                state.nodes[node].asked = Some(Asked { request, sent, answer: None });
            }
            Action::Process(node) => {
                let asked = state.nodes[node].asked.as_mut().unwrap();
                asked.answer = Some(state.store.act(node, &asked.request, state.now));
            }
            Action::Deliver(node) => {
                let asked = state.nodes[node].asked.take().unwrap();
                state.nodes[node].learn(asked);
            }
            Action::GiveUp(node, late) => {
                let asked = state.nodes[node].asked.take().unwrap();
                if late {
                    state.late = Some((node, asked.request));
                }
                state.nodes[node].listing = None;
                state.faults += 1;
            }
            Action::Late => {
                let (node, request) = state.late.take().unwrap();
                state.store.act(node, &request, state.now);
            }
            Action::Crash(node) => {
                let NodeState { previous, behind, .. } = state.nodes[node];
                state.nodes[node] = NodeState { previous, behind, ..NodeState::default() };
                state.faults += 1;
            }
            Action::RollBack => {
                let revision = state.store.revision;
                state.store = state.backups[state.backups.len() - 2].clone();
                // etcd counts on from the backup; what matters here is that revisions repeat, which `revision` would hide.
                debug_assert!(state.store.revision <= revision);
                state.rolled_back = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no subnet has two owners", |_, state: &State| {
                let owned: Vec<_> =
                    (0..state.nodes.len()).filter_map(|node| Self::owns(state, node)).collect();
                owned.iter().enumerate().all(|(at, subnet)| !owned[..at].contains(subnet))
            }),
            // From moments of the last tick at which nobody waits for an answer: every state leads to one of them.
            Property::always("without faults every node gets a subnet", |protocol: &Self, state: &State| {
                let waiting =
                    state.now < protocol.ticks || state.nodes.iter().any(|node| node.asked.is_some());
                waiting || !protocol.has_room() || protocol.settles(state.clone())
            }),
            Property::sometimes("every node owns a subnet", |_, state: &State| {
                (0..state.nodes.len()).all(|node| Self::owns(state, node).is_some())
            }),
            Property::sometimes(
                "a lease that nobody renewed is taken by another node",
                |_, state: &State| {
                    let taken = |(node, it): (Node, &NodeState)| {
                        let former = it.previous?;
                        state.store.keys.get(&former).filter(|key| key.node != node)
                    };
                    state.nodes.iter().enumerate().any(|with| taken(with).is_some())
                },
            ),
        ]
    }
}

impl State {
    fn tick(&mut self, backup: bool) {
        if backup {
            self.backups.push(self.store.clone());
        }
        self.now += 1;
    }
}

impl Protocol {
    fn has_room(&self) -> bool {
        let subnets = Self::subnet(Ipv4Network::from(self.config.subnet_max));
        usize::from(subnets) >= self.nodes
    }

    /// Lets the world go on without a fault, each node acting as soon as it can: every one must come to own a subnet.
    fn settles(&self, mut state: State) -> bool {
        for _ in 0..4 * usize::from(TTL) {
            for _ in 0..4 * self.nodes {
                for node in 0..self.nodes {
                    for step in [
                        self.next_requests(&state, node)
                            .into_iter()
                            .next()
                            .map(|request| Action::Ask(node, request)),
                        Some(Action::Process(node)),
                        Some(Action::Deliver(node)),
                    ] {
                        let possible = match (&step, &state.nodes[node].asked) {
                            (Some(Action::Ask(..)), None) => true,
                            (Some(Action::Process(_)), Some(asked)) => asked.answer.is_none(),
                            (Some(Action::Deliver(_)), Some(asked)) => asked.answer.is_some(),
                            _ => false,
                        };
                        if possible {
                            state = self.next_state(&state, step.unwrap()).unwrap();
                        }
                    }
                }
            }
            if (0..self.nodes).all(|node| Self::owns(&state, node).is_some()) {
                return true;
            }
            let now = state.now + 1;
            state.now = now;
            state.store.keys.retain(|_, key| key.deadline > now);
        }
        false
    }
}

/// Explores everything there is, or stops at the first broken promise when that is what is looked for.
fn explore(protocol: Protocol, until: HasDiscoveries) -> impl Checker<Protocol> {
    let checker = protocol.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn two_nodes_and_two_subnets_in_every_order() {
    explore(Protocol::new(2, 2, 3, 1), HasDiscoveries::All).assert_properties();
}

#[test]
fn two_nodes_fight_for_one_subnet_in_every_order() {
    let checker = explore(Protocol::new(2, 1, 4, 2), HasDiscoveries::All);
    checker.assert_no_discovery("no subnet has two owners");
    checker.assert_any_discovery("a lease that nobody renewed is taken by another node");
}

#[test]
fn three_nodes_and_three_subnets_up_to_a_depth() {
    let checker = Protocol::new(3, 3, 3, 1).checker().threads(2).target_max_depth(14).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_no_discovery("no subnet has two owners");
    checker.assert_no_discovery("without faults every node gets a subnet");
}

/// What cannot hold, and the README says so with its bound: a node believes in its lease longer than the store by as much as
/// its clock has lost since the last renewal.
#[test]
fn a_clock_that_stands_still_is_found_to_break_the_promise() {
    let protocol = Protocol { slow_clock: true, ..Protocol::new(2, 1, 5, 1) };
    explore(protocol, HasDiscoveries::AnyFailures).assert_any_discovery("no subnet has two owners");
}

/// Nor can it hold across a store that is set back: the older store may give a subnet to its former holder, while the present
/// one believes in its lease until it hears of the change or its time is over.
#[test]
fn a_store_that_is_set_back_is_found_to_break_the_promise() {
    let protocol = Protocol { rollback: true, ..Protocol::new(2, 1, 5, 1) };
    explore(protocol, HasDiscoveries::AnyFailures).assert_any_discovery("no subnet has two owners");
}
