//! What can happen: to a process, to its way to the store, to the store, to its content, to a kernel.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::cluster::Cluster;
use super::node::now;
use super::whole::SUBNETS;
use crate::kernel::Change;
use crate::kernel::fake::FakeKernel;
use crate::model::MacAddr;
use crate::model::state::{Operation, Route};
use crate::store::seeded::Random;

/// Machines that were suspended wake up after at most so many seconds.
const LONGEST_SLEEP: u64 = 48 * 3600;

impl Cluster {
    fn any_node(&mut self) -> usize {
        usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap()
    }

    /// Something happens.
    pub(super) async fn fault(&mut self) {
        let number = self.any_node();
        match self.random.below(26) {
            0..=2 => self.fault_of_process(number),
            3 => self.fault_of_time(number).await,
            4..=8 => self.fault_of_line(number),
            9..=12 => self.fault_of_store(),
            13..=16 => self.fault_of_content(number),
            17 => self.move_node(number),
            18..=19 => self.fault_of_backup(),
            20 => self.give_address_of_another(number),
            21 if self.nodes.len() < self.most => {
                self.say(|| "a node joins".to_owned());
                self.join();
            }
            _ => self.disturb_kernel(number),
        }
    }

    fn fault_of_process(&mut self, number: usize) {
        if !self.nodes[number].runs() {
            self.say(|| format!("node {number} starts again"));
            return self.start(number);
        }
        let (reboot, at_once) = (self.random.once_in(4), self.random.once_in(2));
        self.say(|| format!("node {number} crashes, reboot={reboot}, at_once={at_once}"));
        if reboot {
            self.nodes[number].reboot();
        } else {
            self.nodes[number].crash();
        }
        if at_once {
            self.start(number);
        }
    }

    /// Somebody's process does not run for a while, or all machines sleep.
    async fn fault_of_time(&mut self, number: usize) {
        let seconds = match self.random.below(4) {
            0 => self.random.below(LONGEST_SLEEP),
            _ => self.random.below(3 * self.times.ttl.as_secs()),
        };
        let time = Duration::from_secs(seconds);
        match self.random.below(6) {
            0 => {
                self.say(|| format!("everybody sleeps for {time:?}"));
                tokio::time::advance(time).await;
            }
            1 => {
                self.say(|| format!("node {number} is stopped for {time:?} with its next renewal answered"));
                self.nodes[number].link.stop_with_renewal(time);
            }
            2..=3 => {
                self.say(|| format!("node {number} is stopped for {time:?} with the next answer on its way"));
                self.nodes[number].link.stop_with_next_answer(time);
            }
            _ => {
                self.say(|| format!("node {number} is stopped for {time:?}"));
                self.nodes[number].link.gate.stop_for(time);
            }
        }
    }

    fn fault_of_line(&mut self, number: usize) {
        let (kind, lossy) = (self.random.below(4), 1 + self.random.below(5));
        let delay = Duration::from_millis(10 << self.random.below(9));
        let link = self.nodes[number].link.clone();
        match kind {
            0 => link.set_down(true),
            1 => link.set_quality(lossy, delay),
            _ => {
                link.set_down(false);
                link.set_quality(0, delay);
            }
        }
        self.say(|| format!("line of node {number}: kind {kind}, one in {lossy}, delay {delay:?}"));
    }

    fn fault_of_store(&mut self) {
        let kind = self.random.below(16);
        match kind {
            0..=1 => self.memory.set_down(true),
            2..=6 => self.memory.set_down(false),
            7..=8 => self.memory.cut(),
            9..=11 => {
                self.memory.compact();
                self.memory.cut();
            }
            12 => self.memory.lose_answer(),
            13 => self.memory.fail(u32::try_from(self.random.below(20)).unwrap()),
            _ => {
                self.stores += 1;
                self.memory.replace(self.stores);
                self.owners.lock().unwrap().excuse_all(now() + self.times.ttl);
                if self.random.once_in(2) {
                    self.write_config();
                }
            }
        }
        let what = match kind {
            0..=1 => "is down",
            2..=6 => "is up",
            7..=8 => "breaks every watch",
            9..=11 => "is compacted while every watch is broken",
            12 => "loses one answer",
            13 => "fails a few times",
            _ => "is replaced by an empty one",
        };
        self.say(|| format!("the store {what}"));
    }

    /// The operator saves the store, or goes back to what was saved: a new cluster that counts from there on, or, as etcd's
    /// documentation wants it for clients that watch, the same cluster with its revision bumped. (The same cluster with a
    /// revision that clients have seen before cannot be told from one that went on: nobody could.)
    fn fault_of_backup(&mut self) {
        let Some(backup) = self.backup.clone().filter(|_| self.random.once_in(2)) else {
            self.say(|| "the store is saved".to_owned());
            self.backup = Some(self.memory.backup());
            return;
        };
        let bumped = self.random.once_in(2);
        if bumped {
            self.memory.restore(&backup, self.memory.cluster(), 1_000_000_000);
            // Only the present store can be bumped: what is saved counts less.
            self.backup = None;
        } else {
            self.stores += 1;
            self.memory.restore(&backup, self.stores, 0);
        }
        self.owners.lock().unwrap().excuse_all(now() + self.times.ttl);
        self.say(|| format!("the store is restored from the backup, bumped={bumped}"));
    }

    /// Somebody gives a node the address that another one has already. It lasts until everything is put right.
    fn give_address_of_another(&mut self, number: usize) {
        let other = self.any_node();
        if other == number || self.twins.contains(&other) {
            return;
        }
        let address = self.nodes[other].public_ip;
        self.say(|| format!("node {number} has {address} now, which is the address of node {other}"));
        self.twins.insert(number);
        self.had_twins = true;
        self.nodes[number].move_to(address);
    }

    fn fault_of_content(&mut self, number: usize) {
        let address = self.nodes[number].public_ip.to_string();
        let content = self.memory.content();
        let own = content
            .iter()
            .find(|(_, record)| String::from_utf8_lossy(&record.value).contains(&format!("{address:?}")));
        let Some((key, _)) = own.filter(|_| self.random.once_in(2)) else { return self.write_junk_or_peer() };
        let subnet = key.strip_prefix(SUBNETS).unwrap().replace('-', "/").parse().unwrap();
        self.owners.lock().unwrap().excuse(subnet, now() + self.times.ttl);
        if self.spare == 0 || self.random.once_in(2) {
            self.say(|| format!("somebody deletes {key}"));
            self.memory.remove(key);
        } else {
            self.spare -= 1;
            let value = self.foreign_value();
            self.say(|| format!("somebody writes another node's lease into {key}: {value}"));
            self.memory.set(key, &value, None);
        }
    }

    /// Keys that nobody of ours wrote: usable and unusable ones.
    pub(super) fn write_junk_or_peer(&mut self) {
        let address = self.fresh_address();
        let foreign = self.foreign_value();
        let (name, value) = match self.random.below(7) {
            0 => ("junk".to_owned(), foreign),
            1 => ("10.200.3.0-33".to_owned(), foreign),
            2 => ("192.168.7.0-24".to_owned(), foreign),
            3 => ("10.200.254.0-24".to_owned(), "{not json".to_owned()),
            4 => ("10.200.253.0-24".to_owned(), foreign.replace("\"VNI\":1", "\"VNI\":2")),
            5 => ("10.200.252.0-24".to_owned(), foreign.replace(r#"P":"10.9"#, r#"P":"10.200"#)),
            _ => (format!("10.200.{}.0-24", 246 + address.octets()[3] % 4), foreign),
        };
        let ttl = self.random.once_in(2).then(|| self.times.ttl / 2);
        self.say(|| format!("somebody writes {name} for {ttl:?}: {value}"));
        self.memory.set(&format!("{SUBNETS}{name}"), &value, ttl);
    }

    /// The lease of a node that does not exist.
    fn foreign_value(&mut self) -> String {
        let [_, _, high, low] = self.fresh_address().octets();
        format!(
            r#"{{"PublicIP":"10.9.{high}.{low}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:ff:00:00:{high:02x}:{low:02x}"}}}}"#
        )
    }

    pub(super) fn move_node(&mut self, number: usize) {
        self.twins.remove(&number);
        let address = self.fresh_address();
        self.say(|| format!("node {number} has the address {address} now"));
        self.nodes[number].move_to(address);
    }

    /// Somebody changes what the kernel of a node holds.
    pub(super) fn disturb_kernel(&mut self, number: usize) {
        let kernel = self.nodes[number].kernel.clone();
        let mut what = "";
        kernel.disturb(|kernel| what = disturb(kernel, &mut self.random));
        self.say(|| format!("kernel of node {number}: {what}"));
    }
}

fn disturb(kernel: &mut FakeKernel, random: &mut Random) -> &'static str {
    // Never the same twice: a daemon that starts later keeps what its device has, and two nodes with one MAC are another story.
    let [a, b, c, d, ..] = random.bits().to_be_bytes();
    let foreign = MacAddr::new([2, 0xee, a, b, c, d]);
    let elsewhere = Ipv4Addr::new(10, 9, 9, 9);
    let entries = &kernel.state.entries;
    let neighbor = random.choice(&entries.neighbors.iter().map(|(&ip, &mac)| (ip, mac)).collect::<Vec<_>>());
    let fdb = random.choice(&entries.fdb.iter().map(|(&mac, target)| (mac, target.dst)).collect::<Vec<_>>());
    let route = random.choice(&entries.routes.iter().copied().collect::<Vec<_>>());
    let exists = kernel.state.vtep.is_some();
    let mut operations = Vec::new();
    let what = match random.below(13) {
        0 if exists => {
            kernel.delete_device();
            "device deleted"
        }
        1 if exists => {
            kernel.take_down();
            "device down"
        }
        2 if exists => {
            kernel.state.vtep.iter_mut().for_each(|device| (device.mac, device.mtu) = (foreign, 1000));
            kernel.queue.push(Change::Device);
            "MAC and MTU changed"
        }
        3 if exists => {
            kernel.state.vtep.iter_mut().for_each(|device| device.addresses.clear());
            kernel.queue.push(Change::Device);
            "address removed"
        }
        4 => {
            kernel.state.entries = Default::default();
            kernel.overrun();
            "all entries gone, notifications lost"
        }
        12 => {
            operations.extend(fdb.map(|(mac, dst)| Operation::DeleteFdb(mac, dst)));
            operations.extend(route.map(Operation::DeleteRoute));
            operations.push(Operation::PutNeighbor(Ipv4Addr::new(10, 200, 99, 8), foreign));
            operations.iter().for_each(|operation| kernel.state.entries.apply(operation));
            operations.clear();
            kernel.overrun();
            "FDB entry and route deleted, foreign neighbour added, notifications lost"
        }
        5 if exists => {
            operations.push(Operation::PutNeighbor(Ipv4Addr::new(10, 200, 99, 9), foreign));
            operations.push(Operation::PutFdb(foreign, elsewhere));
            operations.push(Operation::PutRoute(Route::overlay("10.200.255.0/24".parse().unwrap())));
            "foreign entries on our device"
        }
        6..=7 => {
            operations.extend(neighbor.map(|(ip, mac)| Operation::DeleteNeighbor(ip, mac)));
            operations.extend(fdb.map(|(mac, dst)| Operation::DeleteFdb(mac, dst)));
            "neighbour and FDB entry deleted"
        }
        8..=9 => {
            operations.extend(route.map(Operation::DeleteRoute));
            "route deleted"
        }
        _ => {
            operations.extend(neighbor.map(|(ip, _)| Operation::PutNeighbor(ip, foreign)));
            operations.extend(fdb.map(|(mac, _)| Operation::PutFdb(mac, elsewhere)));
            operations
                .extend(route.map(|route| Operation::PutRoute(Route { gateway: Some(elsewhere), ..route })));
            "neighbour, FDB entry and route changed"
        }
    };
    operations.iter().for_each(|operation| kernel.interfere(operation));
    what
}
