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
//!
//! Two nodes are explored exhaustively. With three there is too much: everything up to a depth, and beside it walks at random,
//! seeded, which are several leases' lives deep; what they came across is counted, so that they cannot pass for having met nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by failing")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use flanneld::model::acquire::{Claimant, Decision, Listed, decide};
use flanneld::model::{LeaseAttrs, MacAddr, NetworkConfig, NodeId, VxlanData};
use ipnetwork::Ipv4Network;
use stateright::{Checker, Chooser, HasDiscoveries, Model, Property};

/// How long a lease lives, in ticks; renewed when one tick is left.
const TTL: u8 = 2;

type Node = usize;
type Subnet = u8;

/// What is explored.
#[derive(Clone)]
struct Protocol {
    nodes: usize,
    ids: Vec<NodeId>,
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Request {
    List,
    Create(Subnet),
    /// Prolong the key if it is still the one written at this revision.
    Renew(Subnet, u8),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Answer {
    Listing(BTreeMap<Subnet, Key>),
    Held(Subnet, u8),
    Conflict,
}

/// A lease as its node believes in it, counted on the node's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Own {
    subnet: Subnet,
    modified: u8,
    expires: u8,
    /// As in what gave it.
    behind: u8,
    since_set_back: bool,
}

/// A conversation that is going on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Asked {
    request: Request,
    sent: u8,
    /// How far the clock was behind when it was sent.
    behind: u8,
    answer: Option<Answer>,
    /// The store acted after it was set back.
    since_set_back: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
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
    /// When the store was set back.
    set_back: Option<u8>,
    /// Since when two nodes own one subnet, where that is possible.
    shared: Option<u8>,
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
        let ids = (0..nodes).map(|node| NodeId::from_machine_id(&format!("machine {node}"))).collect();
        Self { nodes, ids, config, ticks, faults, slow_clock: false, rollback: false }
    }

    /// The promise: no subnet has two owners.
    fn holds(&self) -> bool {
        !self.slow_clock && !self.rollback
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
        let mac = |node: Node| MacAddr::new([2, 0, 0, 0, 0, u8::try_from(node).unwrap()]);
        let listed = listing.iter().enumerate().map(|(index, (subnet, key))| {
            let data = VxlanData { vni: 1, mac: mac(key.node) };
            let attrs = LeaseAttrs::vxlan(Self::public_ip(key.node), data, Some(self.ids[key.node]));
            Listed { index, subnet: Self::network(*subnet), attrs: Some(attrs) }
        });
        let claimant = Claimant {
            config: &self.config,
            public_ip: Self::public_ip(node),
            node_id: Some(self.ids[node]),
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

    /// A node waits for an answer, or for the time to renew: when a tick is left.
    fn waits(state: &State, node: Node) -> bool {
        let it = &state.nodes[node];
        it.asked.is_some() || it.own.is_some_and(|own| Self::clock(state, node) + 1 < own.expires)
    }

    /// What a node that waits for nothing does next.
    fn next_requests(&self, state: &State, node: Node) -> Vec<Request> {
        if Self::waits(state, node) {
            return Vec::new();
        }
        let it = &state.nodes[node];
        match (it.own, &it.listing) {
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
                let Asked { sent, behind, since_set_back, .. } = asked;
                self.own = Some(Own { subnet, modified, expires: sent + TTL, behind, since_set_back });
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
        vec![State { now: 0, store, backups, nodes, late: None, faults: 0, set_back: None, shared: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // A node that has something to ask asks at once; what takes time is the way there and back.
        let idle = (0..self.nodes).all(|node| Self::waits(state, node));
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
        if self.rollback && state.set_back.is_none() && state.backups.len() >= 2 {
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
                let (sent, behind) = (Self::clock(&state, node), state.nodes[node].behind);
                let asked = Asked { request, sent, behind, answer: None, since_set_back: false };
                state.nodes[node].asked = Some(asked);
            }
            Action::Process(node) => {
                let asked = state.nodes[node].asked.as_mut().unwrap();
                asked.answer = Some(state.store.act(node, &asked.request, state.now));
                asked.since_set_back = state.set_back.is_some();
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
                state.set_back = Some(state.now);
            }
        }
        if !self.holds() {
            state.shared = Self::shared(&state).map(|_| state.shared.unwrap_or(state.now));
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no subnet has two owners", |_, state: &State| Self::shared(state).is_none()),
            // From moments of the last tick at which nobody waits for an answer: every state leads to one of them.
            Property::always("without faults every node gets a subnet", |protocol: &Self, state: &State| {
                let waiting =
                    state.now < protocol.ticks || state.nodes.iter().any(|node| node.asked.is_some());
                waiting || protocol.settles(state.clone())
            }),
            Property::sometimes("every subnet that is wanted is owned", |protocol: &Self, state: &State| {
                protocol.is_settled(state)
            }),
            Property::sometimes("a subnet is owned by another node than before", |_, state: &State| {
                let former = |node: usize| state.nodes[node].previous.map(|subnet| (node, subnet));
                let mut owned =
                    (0..state.nodes.len()).filter_map(|node| Some((node, Self::owns(state, node)?)));
                owned.any(|(owner, subnet)| {
                    (0..state.nodes.len())
                        .filter_map(former)
                        .any(|(node, had)| had == subnet && node != owner)
                })
            }),
        ];
        if self.slow_clock {
            properties.push(Property::always(LOST_TIME, |_, state: &State| {
                let lost = state.nodes.iter().filter_map(|node| Some(node.behind - node.own?.behind)).max();
                state.shared.is_none_or(|since| state.now - since < lost.unwrap_or(0))
            }));
        }
        if self.rollback {
            properties.push(Property::always(NEXT_ANSWER, |_, state: &State| {
                let Some((set_back, owners)) = state.set_back.zip(Self::shared(state)) else {
                    return state.shared.is_none();
                };
                let unaware = |node: &Node| state.nodes[*node].own.is_some_and(|own| !own.since_set_back);
                owners.iter().any(unaware) && state.now < set_back + TTL
            }));
        }
        properties
    }
}

/// The bound of a slow clock.
const LOST_TIME: &str = "two owners for less time than a clock has lost since the last renewal";

/// The bound of a store that is set back: an answer that came since ends it.
const NEXT_ANSWER: &str = "two owners only until one hears from the store again, or its time is over";

impl State {
    fn tick(&mut self, backup: bool) {
        if backup {
            self.backups.push(self.store.clone());
        }
        self.now += 1;
    }
}

impl Protocol {
    /// Two nodes that own one subnet.
    fn shared(state: &State) -> Option<[Node; 2]> {
        let owned = |node| Some((node, Self::owns(state, node)?));
        let mut owned = (0..state.nodes.len()).filter_map(owned);
        owned.find_map(|(node, subnet)| {
            let other = (0..node).find(|other| Self::owns(state, *other) == Some(subnet))?;
            Some([other, node])
        })
    }

    /// Every node owns a subnet, or all subnets are owned.
    fn is_settled(&self, state: &State) -> bool {
        let subnets = Self::subnet(Ipv4Network::from(self.config.subnet_max));
        let owners = (0..self.nodes).filter(|node| Self::owns(state, *node).is_some()).count();
        owners == self.nodes.min(usize::from(subnets))
    }

    /// Lets the world go on without a fault, each node acting as soon as it can: no subnet may stay free that is wanted.
    fn settles(&self, mut state: State) -> bool {
        for _ in 0..4 * usize::from(TTL) {
            for _ in 0..4 * self.nodes {
                if self.is_settled(&state) {
                    return true;
                }
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
            let now = state.now + 1;
            state.now = now;
            state.store.keys.retain(|_, key| key.deadline > now);
        }
        false
    }
}

/// Walks at random, where a fault is one step in eight, and counts what it comes across.
#[derive(Clone, Default)]
struct Walker(Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Walker {
    /// Not by a stroke of luck: often.
    fn assert_met<const N: usize>(&self, what: [&'static str; N]) {
        let met = self.0.lock().unwrap();
        for what in what {
            assert!(met.get(what).is_some_and(|times| *times >= 50), "{what} is too rare: {met:?}");
        }
    }
}

/// A step worth to be counted.
fn notable(state: &State, action: &Action) -> Option<&'static str> {
    let asked = |node: Node| state.nodes[node].asked.as_ref();
    let taken = |node: Node, subnet: Subnet| {
        let free = !state.store.keys.contains_key(&subnet);
        free && state.nodes.iter().enumerate().any(|(other, it)| other != node && it.previous == Some(subnet))
    };
    match *action {
        Action::Crash(_) => Some("crash"),
        Action::GiveUp(_, true) => Some("request that may arrive late"),
        Action::GiveUp(node, _) if asked(node)?.answer.is_some() => Some("lost answer"),
        Action::GiveUp(..) => Some("lost request"),
        Action::Late => Some("late request"),
        Action::Expire(_) => Some("expiry"),
        Action::SlowTick => Some("slow tick"),
        Action::RollBack => Some("store set back"),
        Action::Process(node) => match asked(node)?.request {
            Request::Create(subnet) if taken(node, subnet) => Some("takeover"),
            Request::Renew(..) if state.nodes[node].own.is_none() => Some("return to its lease"),
            _ => None,
        },
        _ => None,
    }
}

impl Chooser<Protocol> for Walker {
    /// Of a generator of pseudo-random numbers (xorshift64, Marsaglia 2003).
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed | 1
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[State]) -> usize {
        0
    }

    fn choose_action(&self, random: &mut u64, state: &State, actions: &[Action]) -> usize {
        let mut below = |bound: usize| {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            usize::try_from((*random >> 32) % bound as u64).unwrap()
        };
        let is_fault = |action: &Action| {
            matches!(action, Action::GiveUp(..) | Action::Crash(_) | Action::SlowTick | Action::RollBack)
        };
        let fault = below(8) == 0;
        let wanted: Vec<usize> =
            (0..actions.len()).filter(|index| is_fault(&actions[*index]) == fault).collect();
        let chosen = if wanted.is_empty() { below(actions.len()) } else { wanted[below(wanted.len())] };
        if let Some(what) = notable(state, &actions[chosen]) {
            *self.0.lock().unwrap().entry(what).or_default() += 1;
        }
        chosen
    }
}

/// Walks until so many states were seen, each time from the beginning to the end of time.
fn walk(protocol: Protocol, states: usize) -> (impl Checker<Protocol>, Walker) {
    let walker = Walker::default();
    let checker = protocol.checker().target_state_count(states);
    let checker =
        checker.finish_when(HasDiscoveries::AllOf([""].into())).spawn_simulation(1, walker.clone()).join();
    println!(
        "{} states, {} deep; met {:?}",
        checker.state_count(),
        checker.max_depth(),
        walker.0.lock().unwrap()
    );
    (checker, walker)
}

/// Nodes are alike: of the states that differ in their numbers only, this is the one that stands for all.
fn lowest(state: &State) -> State {
    if state.nodes.is_sorted() {
        return state.clone();
    }
    let mut order: Vec<Node> = (0..state.nodes.len()).collect();
    order.sort_by_key(|node| &state.nodes[*node]);
    let number = |node: Node| order.iter().position(|other| *other == node).unwrap();
    let renumber = |keys: &mut BTreeMap<Subnet, Key>| {
        keys.values_mut().for_each(|key| key.node = number(key.node));
    };
    let mut lowest = state.clone();
    renumber(&mut lowest.store.keys);
    lowest.backups.iter_mut().for_each(|backup| renumber(&mut backup.keys));
    lowest.late.iter_mut().for_each(|(node, _)| *node = number(*node));
    lowest.nodes.iter_mut().for_each(|it| {
        it.listing.iter_mut().for_each(renumber);
        if let Some(Answer::Listing(listing)) = it.asked.as_mut().and_then(|asked| asked.answer.as_mut()) {
            renumber(listing);
        }
    });
    lowest.nodes = order.iter().map(|node| std::mem::take(&mut lowest.nodes[*node])).collect();
    lowest
}

/// Explores everything there is.
fn explore(protocol: Protocol) -> impl Checker<Protocol> {
    // Only node 0 can have a slow clock.
    let alike = !protocol.slow_clock;
    let checker = protocol.checker().threads(2);
    let checker = if alike { checker.symmetry_fn(lowest) } else { checker };
    let checker = checker.spawn_dfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn two_nodes_and_two_subnets_in_every_order() {
    explore(Protocol::new(2, 2, 3, 1)).assert_properties();
}

#[test]
fn two_nodes_fight_for_one_subnet_in_every_order() {
    explore(Protocol::new(2, 1, 3, 1)).assert_properties();
}

#[test]
fn three_nodes_and_three_subnets_up_to_a_depth() {
    let checker = Protocol::new(3, 3, 3, 1).checker().threads(2).target_max_depth(14).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_no_discovery("no subnet has two owners");
    checker.assert_no_discovery("without faults every node gets a subnet");
}

/// A hundred steps and more at a time; one acquisition takes six.
#[test]
fn three_nodes_and_three_subnets_for_several_lives_of_a_lease() {
    let (checker, walker) = walk(Protocol::new(3, 3, 10, 6), 200_000);
    checker.assert_properties();
    walker.assert_met(["crash", "lost request", "lost answer", "late request", "expiry", "takeover"]);
    walker.assert_met(["return to its lease"]);
}

#[test]
fn three_nodes_fight_for_two_subnets_for_several_lives_of_a_lease() {
    let (checker, walker) = walk(Protocol::new(3, 2, 10, 6), 50_000);
    checker.assert_properties();
    walker.assert_met(["crash", "lost request", "lost answer", "late request", "expiry", "takeover"]);
}

/// What cannot hold, and the README says so with its bound: a node believes in its lease longer than the store by as much as
/// its clock has lost since the last renewal.
#[test]
fn a_clock_that_stands_still_breaks_the_promise_for_the_time_it_has_lost() {
    let slow = |protocol| Protocol { slow_clock: true, ..protocol };
    let (walked, walker) = walk(slow(Protocol::new(3, 3, 10, 6)), 100_000);
    walker.assert_met(["slow tick", "takeover"]);
    walked.assert_any_discovery("no subnet has two owners");
    walked.assert_no_discovery(LOST_TIME);
    let explored = explore(slow(Protocol::new(2, 1, 3, 1)));
    explored.assert_any_discovery("no subnet has two owners");
    explored.assert_no_discovery(LOST_TIME);
}

/// Nor can it hold across a store that is set back: the older store may give a subnet to its former holder or to anybody, while
/// the present one believes in its lease until it hears of the change or its time is over.
#[test]
fn a_store_that_is_set_back_breaks_the_promise_until_the_next_answer() {
    let set_back = |protocol| Protocol { rollback: true, ..protocol };
    let (walked, walker) = walk(set_back(Protocol::new(3, 3, 10, 6)), 100_000);
    walker.assert_met(["store set back", "takeover"]);
    walked.assert_any_discovery("no subnet has two owners");
    walked.assert_no_discovery(NEXT_ANSWER);
    let explored = explore(set_back(Protocol::new(2, 1, 3, 0)));
    explored.assert_any_discovery("no subnet has two owners");
    explored.assert_no_discovery(NEXT_ANSWER);
}
