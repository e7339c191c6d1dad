//! What befalls an etcd that goes on running: it is full, or its clients do not reach it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::etcd::Etcd;
use crate::node::Node;

/// The members' addresses (10.8.0.101 and up); every other one is a client's.
const MEMBERS: &str = "10.8.0.96/29";
/// The port for clients.
const PORT: u16 = 2379;
/// What a value may have at most on a command line.
const LARGE: usize = 120_000;
/// More than any test's quota.
const MOST: usize = 100;

impl Etcd {
    /// The position of the member that leads.
    ///
    /// # Errors
    /// When no member does, or one does not answer.
    pub fn leader(&self) -> Result<usize> {
        let shown = self.ctl(&["endpoint", "status", "--write-out=json"])?;
        let members: Value = serde_json::from_str(&shown).context("the status of etcd's members")?;
        let number = |member: &Value, pointer: &str| member.pointer(pointer).and_then(Value::as_u64);
        let leads =
            |member: &Value| number(member, "/Status/leader") == number(member, "/Status/header/member_id");
        let leader = members.as_array().into_iter().flatten().find(|member| leads(member));
        let url = leader.and_then(|member| member.get("Endpoint")?.as_str()).context("nobody leads")?;
        let urls = self.endpoints();
        urls.split(',').position(|other| other == url).context("a leader that is no member")
    }

    /// Writes until etcd, started with a small `--quota-backend-bytes`, takes no more ("NOSPACE").
    ///
    /// # Errors
    /// When it takes everything.
    pub fn fill(&self) -> Result<()> {
        let value = "x".repeat(LARGE);
        let refused = (0..MOST).find_map(|_| self.ctl(&["put", "/elsewhere", &value]).err());
        let error = format!("{:#}", refused.context("etcd is not full")?);
        ensure!(error.contains("database space exceeded"), "{}", error.replace(&value, "…"));
        Ok(())
    }

    /// What an operator does then: compacts, defragments, and takes the alarm back.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn make_room(&self) -> Result<()> {
        self.ctl(&["del", "/elsewhere"])?;
        self.compact()?;
        self.ctl(&["defrag"])?;
        self.ctl(&["alarm", "disarm"]).map(drop)
    }

    /// Drops what clients and members say to each other; members still reach each other, and `etcdctl` them.
    ///
    /// # Errors
    /// When a command fails.
    pub fn keep_clients_out(&self) -> Result<()> {
        for node in self.nodes() {
            node.run(&format!("iptables -A INPUT ! -i lo -p tcp --dport {PORT} ! -s {MEMBERS} -j DROP"))?;
            node.run(&format!("iptables -A OUTPUT ! -o lo -p tcp --sport {PORT} ! -d {MEMBERS} -j DROP"))?;
        }
        Ok(())
    }

    /// Undoes [`Etcd::keep_clients_out`].
    ///
    /// # Errors
    /// When a command fails.
    pub fn let_clients_in(&self) -> Result<()> {
        self.nodes().try_for_each(|node| node.run("iptables -F").map(drop))
    }

    /// Lets the members forget every client's connection. While clients are kept out they are not told: half-open connections.
    ///
    /// # Errors
    /// When a command fails.
    pub fn forget_clients(&self) -> Result<()> {
        let line = format!("ss -K --tcp sport = {PORT} and not dst {MEMBERS}");
        self.nodes().try_for_each(|node| node.run(&line).map(drop))
    }
}

/// Breaks a client's connections to etcd off. It notices.
///
/// # Errors
/// When the command fails.
pub fn break_connections(client: &Arc<Node>) -> Result<()> {
    client.run(&format!("ss -K --tcp dport = {PORT}")).map(drop)
}

/// The members that a client is connected to, by their addresses.
///
/// # Errors
/// When the command fails.
pub fn connections(client: &Node) -> Result<String> {
    client.run(&format!("ss --no-header --tcp --numeric state established dport = {PORT}"))
}
