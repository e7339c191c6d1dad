//! A real etcd: members as processes in nodes of their own, and `etcdctl` as the client.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::binaries;
use crate::certificates;
use crate::etcd_v2::V2;
use crate::eventually::eventually;
use crate::http;
use crate::lab::Spec;
use crate::namespaces::Entry;
use crate::node::Node;
use crate::process::Process;

const START: Duration = Duration::from_secs(20);
/// In the node's `/run`, a tmpfs: Debian's etcd 3.4 cannot be told not to fsync.
const DATA: &str = "/run/etcd";
/// Where every member listens for its own node, without TLS.
const LOOPBACK: &str = "http://127.0.0.1:2379";
/// Where a backup is kept, in the first member's node.
const BACKUP: &str = "/run/etcd.backup";

/// One key with what etcd knows about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// the whole key
    pub key: String,
    /// its value
    pub value: String,
    /// revision of its last change
    pub mod_revision: i64,
    /// revision of its creation
    pub create_revision: i64,
    /// id of its etcd lease; 0 for a key that never expires
    pub lease: i64,
}

/// One member.
#[derive(Debug)]
struct Member {
    node: Arc<Node>,
    address: Ipv4Addr,
    process: Option<Process>,
}

/// Which of etcd's two stores holds the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Api {
    /// As Go flannel up to v0.16. Served only with `--enable-v2`.
    V2,
    /// As Go flannel from v0.18 on.
    #[default]
    V3,
}

/// All members.
#[derive(Debug, Default)]
pub struct Etcd {
    members: Vec<Member>,
    api: Api,
    tls: bool,
    /// `USER:PASSWORD`, once the cluster asks for it
    login: Option<String>,
    arguments: Vec<String>,
}

impl Etcd {
    /// Makes a cluster of the given nodes without starting it.
    #[must_use]
    pub fn new(nodes: Vec<(Arc<Node>, Ipv4Addr)>, spec: &Spec) -> Self {
        let member = |(node, address)| Member { node, address, process: None };
        let mut arguments = spec.etcd_arguments.clone();
        if spec.etcd_api == Api::V2 {
            arguments.push("--enable-v2".to_owned());
        }
        if spec.etcd_tls {
            let [ca, certificate, key] = certificates::SERVER_FILES;
            arguments.push(format!("--trusted-ca-file={ca}"));
            arguments.push(format!("--cert-file={certificate}"));
            arguments.push(format!("--key-file={key}"));
            arguments.push("--client-cert-auth".to_owned());
        }
        let members = nodes.into_iter().map(member).collect();
        Self { members, api: spec.etcd_api, tls: spec.etcd_tls, login: None, arguments }
    }

    fn url(&self, member: &Member) -> String {
        format!("{}://{}:2379", if self.tls { "https" } else { "http" }, member.address)
    }

    /// The address of one member.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn address(&self, member: usize) -> Result<Ipv4Addr> {
        self.members.get(member).map(|member| member.address).context("no such member")
    }

    /// The v2 store, whichever holds the network.
    #[must_use]
    pub fn v2(&self) -> V2<'_> {
        V2(self)
    }

    /// Starts every member and waits until the cluster answers.
    ///
    /// # Errors
    /// When it does not within the deadline.
    pub fn start(&mut self) -> Result<()> {
        for member in 0..self.members.len() {
            self.launch(member)?;
        }
        self.wait_healthy()
    }

    /// Starts one member (again) without waiting for it. Its data is what it was.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, member: usize) -> Result<()> {
        let cluster: Vec<String> =
            self.members.iter().map(|m| format!("{}=http://{}:2380", m.node.name(), m.address)).collect();
        let urls: Vec<String> = self.members.iter().map(|member| self.url(member)).collect();
        let url = urls.get(member).context("no such etcd member")?;
        let member = self.members.get_mut(member).context("no such etcd member")?;
        let address = member.address;
        let program = binaries::program("etcd").context("no etcd; `cargo lab demo` gets what is missing")?;
        let mut command = Command::new(program);
        command
            .args(["--name", member.node.name(), "--data-dir", DATA])
            .arg(format!("--listen-client-urls={url},{LOOPBACK}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--listen-peer-urls=http://{address}:2380"))
            .arg(format!("--initial-advertise-peer-urls=http://{address}:2380"))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            .args([
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--logger=zap",
                "--log-outputs=stderr",
            ])
            .args(&self.arguments);
        member.process = Some(Process::start(&member.node, "etcd", &mut command)?);
        Ok(())
    }

    /// Asks for a user name and a password from now on (`etcdctl auth enable`).
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn enable_login(&mut self, user: &str, password: &str) -> Result<()> {
        let login = format!("{user}:{password}");
        self.ctl(&["user", "add", &login])?;
        self.ctl(&["user", "grant-role", user, "root"])?;
        self.ctl(&["auth", "enable"])?;
        self.login = Some(login);
        Ok(())
    }

    /// Waits until the cluster answers a linearizable read.
    ///
    /// # Errors
    /// When it does not within the deadline.
    pub fn wait_healthy(&self) -> Result<()> {
        eventually(START, "etcd answers", || self.ctl(&["get", "/", "--keys-only"]).map(drop))
    }

    /// Ends a member with SIGTERM.
    ///
    /// # Errors
    /// When it does not run or does not end.
    pub fn stop(&mut self, member: usize) -> Result<()> {
        let mut process = self.process(member)?.take().context("this etcd member does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(START).map(drop)
    }

    /// Ends a member with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.process(member)?.take().context("this etcd member does not run")?.kill()
    }

    /// Sends a member a signal, e.g. SIGSTOP and SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&mut self, member: usize, signal: Signal) -> Result<()> {
        self.process(member)?.as_ref().context("this etcd member does not run")?.signal(signal)
    }

    /// Removes a stopped member's data: the next start is an empty store with another cluster id.
    ///
    /// # Errors
    /// When the data cannot be removed.
    pub fn wipe(&mut self, member: usize) -> Result<()> {
        ensure!(self.process(member)?.is_none(), "stop the member before wiping it");
        let node = &self.members.get(member).context("no such etcd member")?.node;
        node.run(&format!("rm -rf {DATA}")).map(drop)
    }

    /// Keeps a backup of the first member (`etcdctl snapshot save`), instead of an earlier one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn backup(&self) -> Result<()> {
        self.ctl(&["snapshot", "save", BACKUP]).map(drop)
    }

    /// Puts the backup in the place of the data of a single stopped member (`etcdctl snapshot restore`).
    ///
    /// # Errors
    /// When there is no backup.
    pub fn restore(&mut self) -> Result<()> {
        self.wipe(0)?;
        let member = self.members.first().context("no etcd member")?;
        let (name, peer) = (member.node.name().to_owned(), format!("http://{}:2380", member.address));
        let cluster = format!("--initial-cluster={name}={peer}");
        let advertised = format!("--initial-advertise-peer-urls={peer}");
        let words =
            ["snapshot", "restore", BACKUP, "--name", &name, "--data-dir", DATA, &cluster, &advertised];
        self.ctl(&words).map(drop)
    }

    /// A member's process number, as the host counts.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, member: usize) -> Result<u32> {
        let member = self.members.get(member).context("no such etcd member")?;
        Ok(member.process.as_ref().context("this etcd member does not run")?.pid())
    }

    fn process(&mut self, member: usize) -> Result<&mut Option<Process>> {
        Ok(&mut self.members.get_mut(member).context("no such etcd member")?.process)
    }

    /// The node of a member.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn node(&self, member: usize) -> Result<&Arc<Node>> {
        Ok(&self.members.get(member).context("no such etcd member")?.node)
    }

    /// The nodes of all members.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.members.iter().map(|member| &member.node)
    }

    /// What `-etcd-endpoints` takes.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(|member| self.url(member)).collect();
        urls.join(",")
    }

    /// The members that run. `etcdctl` takes five seconds to find out that a member is dead.
    fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.process.is_some())
    }

    /// Runs `etcdctl` (API 3) in the first member's node against all members that run (with TLS: that one) and returns its
    /// output.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let node = self.node(0)?;
        let mut command = Command::new("etcdctl");
        let urls: Vec<String> = self.running().map(|member| self.url(member)).collect();
        let endpoints = if self.tls { LOOPBACK.to_owned() } else { urls.join(",") };
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}"));
        command.envs(self.login.iter().map(|login| ("ETCDCTL_USER", login)));
        command.args(["--dial-timeout=1s", "--command-timeout=10s"]).args(arguments).stdin(Stdio::null());
        let output = node.output(&mut command, &Entry::Node)?;
        if !output.status.success() {
            bail!("etcdctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `etcdctl put KEY VALUE`: a key without a lease.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        match self.api {
            Api::V2 => self.v2().put(key, value, None),
            Api::V3 => self.ctl(&["put", "--", key, value]).map(drop),
        }
    }

    /// The same in v3 without starting a program, so that a hundred in a second are no feat: through etcd's gateway for JSON.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put_quickly(&self, key: &str, value: &str) -> Result<()> {
        let address = "127.0.0.1:2379".parse().context("an address")?;
        let body = serde_json::json!({ "key": base64(key.as_bytes()), "value": base64(value.as_bytes()) });
        let put = || http::request(address, "POST", "/v3/kv/put", &body.to_string());
        let (status, answer) = self.node(0)?.in_network(put)?;
        ensure!(status == 200, "put {key}: {status} {answer}");
        Ok(())
    }

    /// Puts many keys without a lease, a hundred in one request.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put_many(&self, keys: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        // etcd takes at most 128 operations in a transaction.
        const BATCH: usize = 100;
        if self.api == Api::V2 {
            return keys.into_iter().try_for_each(|(key, value)| self.put(&key, &value));
        }
        let quoted = |text: &str| serde_json::to_string(text).context("quote a text");
        let puts =
            keys.into_iter().map(|(key, value)| Ok(format!("put {} {}", quoted(&key)?, quoted(&value)?)));
        let puts = puts.collect::<Result<Vec<String>>>()?;
        for batch in puts.chunks(BATCH) {
            // No condition; what to do when it holds; what else.
            self.transact(&format!("\n{}\n\n\n", batch.join("\n")))?;
        }
        Ok(())
    }

    /// `etcdctl txn` with the transaction on standard input.
    fn transact(&self, transaction: &str) -> Result<()> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoints())).arg("txn");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node(0)?.spawn(&mut command, &Entry::Node)?;
        child.stdin.take().context("etcdctl has no standard input")?.write_all(transaction.as_bytes())?;
        let output = child.wait_with_output().context("wait for etcdctl")?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && shown.contains("SUCCESS"), "etcdctl txn: {shown}{words}");
        Ok(())
    }

    /// Puts a key that lives for `ttl` seconds; in v3 bound to a new etcd lease.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn put_leased(&self, key: &str, value: &str, ttl: u32) -> Result<()> {
        if self.api == Api::V2 {
            return self.v2().put(key, value, Some(Duration::from_secs(ttl.into())));
        }
        let granted = self.ctl(&["lease", "grant", &ttl.to_string()])?;
        let id = granted.split_whitespace().nth(1).context("etcdctl lease grant names no lease")?;
        self.ctl(&["put", &format!("--lease={id}"), "--", key, value]).map(drop)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// When etcd refuses or there was no such key.
    pub fn delete(&self, key: &str) -> Result<()> {
        if self.api == Api::V2 {
            return self.v2().delete(key, "");
        }
        let deleted = self.ctl(&["del", "--", key])?;
        ensure!(deleted.trim() == "1", "no key {key} to delete");
        Ok(())
    }

    /// All keys that begin with `prefix` (in v2: below that folder), in order.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn list(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        if self.api == Api::V2 {
            return self.v2().list(prefix);
        }
        parse_fields(&self.ctl(&["get", "--prefix", "--write-out=fields", "--", prefix])?)
    }

    /// One key.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, key: &str) -> Result<KeyValue> {
        if self.api == Api::V2 {
            return self.v2().get(key);
        }
        let found = parse_fields(&self.ctl(&["get", "--write-out=fields", "--", key])?)?;
        found.into_iter().next().with_context(|| format!("no key {key} in etcd"))
    }

    /// Remaining seconds of an etcd lease.
    ///
    /// # Errors
    /// When it has expired.
    pub fn time_to_live(&self, lease: i64) -> Result<i64> {
        let shown = self.ctl(&["lease", "timetolive", &format!("{lease:x}")])?;
        let remaining = shown.split_once("remaining(").and_then(|(_, rest)| rest.split_once("s)"));
        let (seconds, _) = remaining.with_context(|| format!("lease {lease:x} is gone: {}", shown.trim()))?;
        seconds.parse().context("remaining seconds")
    }

    /// `etcdctl lease revoke`: deletes the keys bound to it.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn revoke(&self, lease: i64) -> Result<()> {
        self.ctl(&["lease", "revoke", &format!("{lease:x}")]).map(drop)
    }

    /// Compacts the history up to the present.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn compact(&self) -> Result<()> {
        let shown = self.ctl(&["get", "/", "--write-out=fields"])?;
        let revision = shown.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        self.ctl(&["compact", revision.context("etcdctl names no revision")?.trim()]).map(drop)
    }
}

/// Reads `etcdctl --write-out=fields`: lines of `"Name" : VALUE`, a key's beginning with `"Key"` and ending with
/// `"Lease"`.
fn parse_fields(text: &str) -> Result<Vec<KeyValue>> {
    let mut found: Vec<KeyValue> = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(" : ") else { continue };
        if name == "\"Key\"" {
            found.push(KeyValue {
                key: unquote(value),
                value: String::new(),
                mod_revision: 0,
                create_revision: 0,
                lease: 0,
            });
        }
        let Some(last) = found.last_mut() else { continue };
        match name {
            "\"Value\"" => last.value = unquote(value),
            "\"ModRevision\"" => last.mod_revision = value.parse().context("ModRevision")?,
            "\"CreateRevision\"" => last.create_revision = value.parse().context("CreateRevision")?,
            "\"Lease\"" => last.lease = value.parse().context("Lease")?,
            _ => {}
        }
    }
    Ok(found)
}

/// Base64 with padding, RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| DIGITS.get((bits & 63) as usize).map_or('=', |digit| char::from(*digit));
    let of_three = |chunk: &[u8]| {
        let bits =
            chunk.iter().zip([16, 8, 0]).fold(0, |bits, (byte, shift)| bits | u32::from(*byte) << shift);
        let digits = [18, 12, 6, 0].map(|shift| digit(bits >> shift));
        digits
            .into_iter()
            .take(chunk.len() + 1)
            .chain(std::iter::repeat_n('=', 3 - chunk.len()))
            .collect::<String>()
    };
    bytes.chunks(3).map(of_three).collect()
}

/// Go's quoting equals JSON's for the text the lab writes; anything else is taken as it is shown.
fn unquote(text: &str) -> String {
    serde_json::from_str(text).unwrap_or_else(|_| text.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob?~", "Zm9vYj9+")];
        for (text, expected) in pairs {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn fields_output_is_read() {
        let text = "\"ClusterID\" : 14841639068965178418\n\"Revision\" : 4\n\"Key\" : \"/a/b\"\n\"CreateRevision\" : 2\n\
                    \"ModRevision\" : 3\n\"Version\" : 1\n\"Value\" : \"{\\\"x\\\":1}\"\n\"Lease\" : 7\n\"More\" : false\n";
        let expected = KeyValue {
            key: "/a/b".into(),
            value: "{\"x\":1}".into(),
            mod_revision: 3,
            create_revision: 2,
            lease: 7,
        };
        assert_eq!(parse_fields(text).unwrap(), [expected]);
    }
}
