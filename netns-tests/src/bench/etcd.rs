//! etcd as the benchmark uses it: filled with made-up peers through either API, and measured itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::grpc::{Connection, Message, Value, fields};
use crate::etcd::Api;
use crate::lab::PREFIX;
use crate::lease;
use crate::node::Node;
use crate::scheduling;

/// Operations in a transaction; etcd allows 128.
const BATCH: usize = 120;
/// What every version of flannel gives a lease.
const TTL: u64 = 86_400;
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);
/// The network: /24 for 16 384 nodes. It overlaps neither the lab's underlay nor the made-up public addresses.
pub(super) const NETWORK_CONFIG: &str =
    r#"{"Network":"100.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const SUBNETS: u32 = 16_384;

/// A made-up node. Numbers count from the top of the network, so that the daemon under test finds room at the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) number: u32,
    /// Another generation has another MAC: a changed lease.
    pub(super) generation: u8,
}

impl Peer {
    pub(super) fn new(number: u32) -> Self {
        Self { number, generation: 0 }
    }

    pub(super) fn subnet(self) -> Ipv4Addr {
        let base = u32::from(Ipv4Addr::new(100, 64, 0, 0));
        Ipv4Addr::from(base + ((SUBNETS - 1 - self.number) << 8))
    }

    pub(super) fn public_ip(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 1, 1)) + self.number)
    }

    pub(super) fn mac(self) -> [u8; 6] {
        let [_, b, c, d] = self.number.to_be_bytes();
        [2, self.generation, 0x5e, b, c, d]
    }

    fn key(self) -> String {
        format!("{PREFIX}/subnets/{}-24", self.subnet())
    }

    fn value(self) -> String {
        let mac: Vec<String> = self.mac().iter().map(|byte| format!("{byte:02x}")).collect();
        lease::value(&self.public_ip().to_string(), &mac.join(":"))
    }
}

/// `count` peers.
pub(super) fn peers(count: u32) -> Vec<Peer> {
    (0..count).map(Peer::new).collect()
}

/// A client in etcd's own node.
pub(super) struct Client {
    node: Arc<Node>,
    v3: Connection,
    lease: u64,
    api: Api,
}

impl Client {
    /// Connects to the member that runs in `node`.
    pub(super) fn connect(node: &Arc<Node>, api: Api) -> Result<Self> {
        let mut v3 = node.in_network(|| Connection::open(ADDRESS))?;
        let grant = Message::default().number(1, TTL);
        let granted = v3.unary("Lease/LeaseGrant", &grant.0)?;
        let lease = number(&granted, 2).context("etcd granted no lease")?;
        Ok(Self { node: Arc::clone(node), v3, lease, api })
    }

    fn v2(&self) -> Result<HttpClient> {
        self.node.in_network(|| HttpClient::connect(ADDRESS))
    }

    /// Writes leases as fast as etcd takes them: transactions of [`BATCH`] in v3, one request each in v2.
    pub(super) fn put_all(&mut self, peers: &[Peer]) -> Result<()> {
        if self.api == Api::V2 {
            let mut http = self.v2()?;
            return peers.iter().try_for_each(|peer| http.put(&peer.key(), &peer.value()));
        }
        for batch in peers.chunks(BATCH) {
            let lease = self.lease;
            let puts = batch.iter().map(|peer| Message::default().bytes(2, &put_request(*peer, lease)).0);
            self.transaction(puts)?;
        }
        Ok(())
    }

    /// Writes one lease.
    pub(super) fn put(&mut self, peer: Peer) -> Result<()> {
        match self.api {
            Api::V2 => self.v2()?.put(&peer.key(), &peer.value()),
            Api::V3 => self.v3.unary("KV/Put", &put_request(peer, self.lease)).map(drop),
        }
    }

    /// Removes one lease.
    pub(super) fn delete(&mut self, peer: Peer) -> Result<()> {
        match self.api {
            Api::V2 => self.v2()?.delete(&peer.key()),
            Api::V3 => self.v3.unary("KV/DeleteRange", &delete_request(peer)).map(drop),
        }
    }

    /// Removes leases, in transactions where the API has them.
    pub(super) fn delete_all(&mut self, peers: &[Peer]) -> Result<()> {
        if self.api == Api::V2 {
            let mut http = self.v2()?;
            return peers.iter().try_for_each(|peer| http.delete(&peer.key()));
        }
        for batch in peers.chunks(BATCH) {
            let deletes = batch.iter().map(|peer| Message::default().bytes(3, &delete_request(*peer)).0);
            self.transaction(deletes)?;
        }
        Ok(())
    }

    /// How long one range over all leases takes: the floor of whoever wants to know them.
    pub(super) fn time_range(&mut self) -> Result<Duration> {
        let (from, to) = (format!("{PREFIX}/subnets/"), format!("{PREFIX}/subnets0"));
        let request = Message::default().bytes(1, from.as_bytes()).bytes(2, to.as_bytes());
        let start = Instant::now();
        self.v3.unary("KV/Range", &request.0)?;
        Ok(start.elapsed())
    }

    /// Deletes whatever the daemon under test leased: every key that is no made-up peer's.
    pub(super) fn forget_leases_of_daemons(&mut self, keys: &[String]) -> Result<()> {
        for key in keys {
            match self.api {
                Api::V2 => self.v2()?.delete(key)?,
                Api::V3 => {
                    self.v3.unary("KV/DeleteRange", &Message::default().bytes(1, key.as_bytes()).0)?;
                }
            }
        }
        Ok(())
    }

    /// A watch of its own: when each event arrives here is the floor of whoever follows the leases.
    pub(super) fn watch(&self) -> Result<WatchFloor> {
        self.watch_and(|_| ())
    }

    /// The same, doing something with each event; its position is given.
    pub(super) fn watch_and(&self, mut each: impl FnMut(usize) + Send + 'static) -> Result<WatchFloor> {
        let (from, to) = (format!("{PREFIX}/subnets/"), format!("{PREFIX}/subnets0"));
        let create = Message::default().bytes(1, from.as_bytes()).bytes(2, to.as_bytes());
        let request = Message::default().bytes(1, &create.0);
        let connection = self.node.in_network(|| Connection::open(ADDRESS))?;
        let mut stream = connection.stream("Watch/Watch", &request.0)?;
        stream.next(Duration::from_secs(5))?.context("etcd did not confirm the watch")?;
        let reader = thread::spawn(move || {
            // As the daemon has them: who of the two is served first shall not depend on that.
            let _ = scheduling::ask_for_short_slices();
            let mut arrivals = Vec::new();
            while let Ok(Some(response)) = stream.next(Duration::from_secs(2)) {
                let at = Instant::now();
                let events = fields(&response).iter().filter(|(field, _)| *field == 11).count();
                for _ in 0..events {
                    each(arrivals.len());
                    arrivals.push(at);
                }
            }
            Watched { arrivals, cpu: own_cpu() }
        });
        Ok(WatchFloor(reader))
    }

    fn transaction(&mut self, operations: impl Iterator<Item = Vec<u8>>) -> Result<()> {
        let message = operations.fold(Message::default(), |message, operation| message.bytes(2, &operation));
        self.v3.unary("KV/Txn", &message.0).map(drop)
    }
}

/// A thread that follows the leases and does next to nothing with them. Ends by itself when nothing has come for two seconds.
pub(super) struct WatchFloor(JoinHandle<Watched>);

/// What such a thread saw.
pub(super) struct Watched {
    /// When each event arrived, in order.
    pub(super) arrivals: Vec<Instant>,
    /// What it took of a CPU.
    pub(super) cpu: Duration,
}

impl WatchFloor {
    pub(super) fn finish(self) -> Result<Watched> {
        self.0.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))
    }

    /// The same, if it heard of so many events.
    pub(super) fn finish_with(self, events: usize) -> Result<Watched> {
        let watched = self.finish()?;
        let heard = watched.arrivals.len();
        ensure!(heard >= events, "a watch of the benchmark heard of {heard} events only, of {events}");
        Ok(watched)
    }
}

/// How long this thread has run on a CPU.
pub(super) fn own_cpu() -> Duration {
    let shown = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = shown.split_whitespace().next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

fn put_request(peer: Peer, lease: u64) -> Vec<u8> {
    let put = Message::default().bytes(1, peer.key().as_bytes()).bytes(2, peer.value().as_bytes());
    put.number(3, lease).0
}

fn delete_request(peer: Peer) -> Vec<u8> {
    Message::default().bytes(1, peer.key().as_bytes()).0
}

fn number(message: &[u8], wanted: u64) -> Option<u64> {
    fields(message).into_iter().find_map(|(field, value)| match value {
        Value::Number(number) if field == wanted => Some(number),
        _ => None,
    })
}

/// A connection that is kept: a process or a connection for each of thousands of requests would be what is measured.
struct HttpClient {
    stream: BufReader<TcpStream>,
}

impl HttpClient {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn put(&mut self, key: &str, value: &str) -> Result<()> {
        let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.request("PUT", key, &format!("value={value}&ttl={TTL}"))
    }

    fn delete(&mut self, key: &str) -> Result<()> {
        self.request("DELETE", key, "")
    }

    fn request(&mut self, method: &str, key: &str, body: &str) -> Result<()> {
        let length = body.len();
        let head = format!(
            "{method} /v2/keys{key} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(head.as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = 0_usize;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().context("content-length")?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        let code = status.split_whitespace().nth(1).unwrap_or_default();
        ensure!(code.starts_with('2') || (method == "DELETE" && code == "404"), "{method} {key}: {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_peers_share_nothing() {
        let (first, last) = (Peer::new(0), Peer::new(16_000));
        assert_eq!(first.key(), format!("{PREFIX}/subnets/100.127.255.0-24"));
        assert_eq!(last.subnet(), Ipv4Addr::new(100, 65, 127, 0));
        assert_eq!(last.public_ip(), Ipv4Addr::new(172, 16, 63, 129));
        assert_ne!(Peer { generation: 1, ..first }.mac(), first.mac());
    }
}
