//! Real etcd servers for the store's tests: on loopback, ephemeral ports, gone with the handle.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::convert::Infallible;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flanneld::model::{LeaseAttrs, MacAddr, VxlanData};
use flanneld::store::{Config, Etcd, EtcdV2, EtcdV3, Held, LeaseStore, Renewal, Revision, Update, Written};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long anything in these tests may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The folder the tests work in.
pub const PREFIX: &str = "/test/network";

/// Polls until `probe` gives something, or panics with `what`.
pub async fn eventually<T, F, A>(what: &str, probe: F) -> T
where
    F: Fn() -> A,
    A: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A server process; killed with the handle, and by the kernel if this process dies.
pub struct Server {
    child: Child,
    dir: TempDir,
    pub url: String,
    args: Vec<String>,
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn data_dir() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

fn spawn(dir: &TempDir, args: &[String]) -> Child {
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut command = Command::new("etcd");
    command.args(args).arg("--data-dir").arg(dir.path().join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().expect("etcd runs (Debian: etcd-server)")
}

/// One member alone, with short election times so that short leases are possible.
pub async fn etcd(extra: &[&str]) -> Server {
    etcd_on("http", extra).await
}

/// One member alone whose clients use `scheme`.
pub async fn etcd_on(scheme: &str, extra: &[&str]) -> Server {
    for _ in 0..5 {
        let [client, peer] = free_ports();
        let (url, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let server = member("one", &url, &peer, &format!("one={peer}"), extra);
        if let Some(server) = ready(server).await {
            return server;
        }
    }
    panic!("etcd did not start five times");
}

/// Three members of one cluster.
pub async fn cluster(extra: &[&str]) -> Vec<Server> {
    'again: for _ in 0..5 {
        let ports: [u16; 6] = free_ports();
        let peers: Vec<String> = ports[3..].iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let all = format!("a={},b={},c={}", peers[0], peers[1], peers[2]);
        let started: Vec<Server> = ["a", "b", "c"]
            .iter()
            .enumerate()
            .map(|(index, name)| {
                member(name, &format!("http://127.0.0.1:{}", ports[index]), &peers[index], &all, extra)
            })
            .collect();
        let mut servers = Vec::new();
        for server in started {
            match ready(server).await {
                Some(server) => servers.push(server),
                None => continue 'again,
            }
        }
        return servers;
    }
    panic!("a cluster did not start five times");
}

fn member(name: &str, url: &str, peer: &str, all: &str, extra: &[&str]) -> Server {
    let dir = data_dir();
    let mut args: Vec<String> = [
        "--name",
        name,
        "--listen-client-urls",
        url,
        "--advertise-client-urls",
        url,
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
        "--initial-cluster",
        all,
        "--heartbeat-interval=50",
        "--election-timeout=500",
    ]
    .map(str::to_owned)
    .to_vec();
    args.extend(extra.iter().map(|&arg| arg.to_owned()));
    Server { child: spawn(&dir, &args), dir, url: url.to_owned(), args }
}

/// Waits until the server serves; `None` if it ended instead (its port was taken meanwhile).
async fn ready(mut server: Server) -> Option<Server> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if server.child.try_wait().unwrap().is_some() {
            return None;
        }
        if serves(&server).await {
            return Some(server);
        }
        assert!(Instant::now() < deadline, "etcd does not answer:\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether it says that it serves, and does. Another test's server may answer at our port before ours finds that out.
async fn serves(server: &Server) -> bool {
    if !server.log().lines().any(|line| line.contains("serving") && line.contains(" client ")) {
        return false;
    }
    if server.url.starts_with("https") {
        TcpStream::connect(server.address()).await.is_ok()
    } else {
        is_healthy(server).await
    }
}

async fn is_healthy(server: &Server) -> bool {
    let Ok(mut stream) = TcpStream::connect(server.address()).await else { return false };
    let request = b"GET /health HTTP/1.0\r\nHost: etcd\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).await.is_ok()
        && stream.read_to_string(&mut answer).await.is_ok()
        && answer.contains("\"true\"")
}

impl Server {
    pub fn address(&self) -> &str {
        self.url.split("://").nth(1).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the killed server again; with `wipe` it has lost its data.
    pub async fn restart(&mut self, wipe: bool) {
        if wipe {
            std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        }
        self.child = spawn(&self.dir, &self.args);
        eventually("etcd serves again", async || serves(self).await.then_some(())).await;
    }

    pub fn signal(&self, signal: nix::libc::c_int) {
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { nix::libc::kill(i32::try_from(self.child.id()).unwrap(), signal) }, 0);
    }

    /// One request to the v2 API, as an operator's `curl` makes it.
    pub async fn v2(&self, method: &str, key: &str, form: &str) -> String {
        self.http(method, &format!("/v2/keys{key}"), form).await
    }

    pub async fn http(&self, method: &str, target: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let kind =
            if body.starts_with('{') { "application/json" } else { "application/x-www-form-urlencoded" };
        let request = format!(
            "{method} {target} HTTP/1.0\r\nHost: etcd\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A plain client, for what operators and other nodes do.
    pub async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.url], None).await.unwrap()
    }

    pub fn config(&self) -> Config {
        config(&[self])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn config(servers: &[&Server]) -> Config {
    Config {
        endpoints: servers.iter().map(|server| server.url.clone()).collect(),
        prefix: PREFIX.to_owned(),
        ..Config::default()
    }
}

/// Stands between a store and its server and does what networks do.
pub struct Proxy {
    pub url: String,
    wires: Arc<Wires>,
}

/// All connections of a proxy.
#[derive(Default)]
struct Wires {
    /// How late the server's bytes arrive, in milliseconds.
    delay: AtomicU64,
    /// Connections older than this are dead, but nobody was told.
    frozen: AtomicU64,
    /// Changes when every connection breaks.
    cut: watch::Sender<()>,
    /// What clients have sent, by connection.
    sent: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
}

impl Proxy {
    pub async fn to(server: &Server) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let wires = Arc::<Wires>::default();
        let proxy = Self { url, wires: wires.clone() };
        let target = server.address().to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                tokio::spawn(wires.clone().carry(near, far));
            }
        });
        proxy
    }

    pub fn slow_down(&self, delay: Duration) {
        self.wires.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Leaves every connection half open. New ones work.
    pub fn freeze(&self) {
        self.wires.frozen.fetch_add(1, Ordering::Relaxed);
    }

    /// Breaks every connection. New ones work.
    pub fn cut(&self) {
        self.wires.cut.send_replace(());
    }

    /// Every HTTP/1.1 request so far: method and target, and the body.
    pub fn requests(&self) -> Vec<(String, String)> {
        let sent = self.wires.sent.lock().unwrap();
        sent.iter().flat_map(|sent| requests(&String::from_utf8_lossy(&sent.lock().unwrap()))).collect()
    }

    pub fn config(&self) -> Config {
        Config { endpoints: vec![self.url.clone()], prefix: PREFIX.to_owned(), ..Config::default() }
    }
}

impl Wires {
    async fn carry(self: Arc<Self>, near: TcpStream, far: TcpStream) {
        let born = self.frozen.load(Ordering::Relaxed);
        let sent = Arc::<Mutex<Vec<u8>>>::default();
        self.sent.lock().unwrap().push(sent.clone());
        let mut cut = self.cut.subscribe();
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            _ = cut.changed() => {}
            () = async {
                tokio::join!(
                    self.forward(near_in, far_out, born, Some(&sent)),
                    self.forward(far_in, near_out, born, None)
                );
            } => {}
        }
    }

    /// Carries the bytes of one direction: those of the client are recorded in `sent`, those of the server arrive later.
    async fn forward(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        born: u64,
        sent: Option<&Mutex<Vec<u8>>>,
    ) {
        let (queue, mut queued) = mpsc::unbounded_channel();
        let read = async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(count) = from.read(&mut buffer).await {
                let delay = match sent {
                    Some(sent) => {
                        sent.lock().unwrap().extend(&buffer[..count]);
                        Duration::ZERO
                    }
                    None => Duration::from_millis(self.delay.load(Ordering::Relaxed)),
                };
                if queue.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() || count == 0 {
                    return;
                }
            }
        };
        let write = async move {
            while let Some((due, bytes)) = queued.recv().await {
                tokio::time::sleep_until(due).await;
                let dead = self.frozen.load(Ordering::Relaxed) > born;
                if !dead && (bytes.is_empty() || to.write_all(&bytes).await.is_err()) {
                    return;
                }
                if bytes.is_empty() {
                    // Half open: neither side is to learn of the end.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::join!(read, write);
    }
}

fn requests(mut sent: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = sent.split_once("\r\n\r\n") {
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let (body, rest) = rest.split_at(length.unwrap_or(0).min(rest.len()));
        let line = head.lines().next().unwrap_or_default();
        found.push((line.trim_end_matches(" HTTP/1.1").to_owned(), body.to_owned()));
        sent = rest;
    }
    found
}

/// Percent-encodes everything but letters, digits and a few signs that mean nothing in a form.
pub fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// A store over etcd v3.
pub fn v3(config: &Config) -> Etcd<EtcdV3> {
    Etcd::new(EtcdV3::new(config).unwrap(), PREFIX)
}

/// A store over etcd v2.
pub fn v2(config: &Config) -> Etcd<EtcdV2> {
    Etcd::new(EtcdV2::new(config).unwrap(), PREFIX)
}

pub fn held(written: Written) -> Held {
    match written {
        Written::Held(held) => held,
        Written::Conflict => panic!("conflict"),
    }
}

pub fn renewed(renewal: Renewal) -> Held {
    match renewal {
        Renewal::Held(held) => held,
        Renewal::Lost(record) => panic!("lost: {record:?}"),
    }
}

/// Has v3's users log in from now on: `root` with a password that must never be seen.
pub async fn with_login(server: &Server) -> Config {
    let mut client = server.client().await;
    client.user_add("root", "hunter2", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    Config { username: "root".to_owned(), password: "hunter2".to_owned(), ..server.config() }
}

/// The value of node `number`.
pub fn attrs(number: u8) -> LeaseAttrs {
    let data = VxlanData { vni: 1, mac: MacAddr::new([2, 0, 0, 0, 0, number]) };
    LeaseAttrs::vxlan([10, 0, 0, number].into(), data, None)
}

/// The subnet of node `number`.
pub fn subnet(number: u8) -> ipnetwork::Ipv4Network {
    format!("10.200.{number}.0/24").parse().unwrap()
}

pub fn name(number: u8) -> String {
    format!("10.200.{number}.0-24")
}

pub fn key(number: u8) -> String {
    format!("{PREFIX}/subnets/{}", name(number))
}

/// A watch in a task of its own, which ends with this.
pub struct Watching {
    pub updates: Receiver<Update>,
    _task: JoinSet<Infallible>,
}

impl Watching {
    pub fn from<S: LeaseStore>(store: &S, next: Revision) -> Self {
        let (sink, updates) = mpsc::channel(1000);
        let store = store.clone();
        let mut task = JoinSet::new();
        task.spawn(async move { store.watch(next, sink).await });
        Self { updates, _task: task }
    }

    pub async fn next(&mut self) -> Update {
        tokio::time::timeout(PATIENCE, self.updates.recv())
            .await
            .expect("an update in time")
            .expect("a watch")
    }
}
