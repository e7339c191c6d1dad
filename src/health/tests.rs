//! The server over real sockets on ports the kernel chooses.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::model::MacAddr;
use crate::status::{OwnLease, Phase};

/// A daemon as the server sees it.
struct Daemon {
    address: SocketAddr,
    status: watch::Sender<Status>,
    pings: Option<mpsc::Receiver<Ping>>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Daemon {
    async fn start(limits: Limits) -> Self {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, published) = watch::channel(Status::default());
        let (ask, pings) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel();
        let sources = Sources {
            status: published,
            metrics: Arc::new(Metrics::default()),
            pings: ask,
            clock: || Duration::from_secs(10),
        };
        let server = tokio::spawn(serve(listener, sources, limits, async {
            let _ = stopped.await;
        }));
        Self { address, status, pings: Some(pings), stop, server }
    }

    /// Answers pings as a healthy loop does.
    fn turn(&mut self) {
        let mut pings = self.pings.take().unwrap();
        tokio::spawn(async move {
            while let Some(ping) = pings.recv().await {
                ping.answer();
            }
        });
    }

    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn request(&self, method: &str, path: &str) -> String {
        rest(self.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await).await
    }

    /// Status code and body.
    async fn get(&self, path: &str) -> (String, String) {
        let text = self.request("GET", path).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }
}

/// Everything until the server closes; a reset counts as closed.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

fn running() -> Status {
    let lease = OwnLease {
        subnet: "10.200.88.0/24".parse().unwrap(),
        public_ip: Ipv4Addr::LOCALHOST,
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        renewed: Duration::ZERO,
        expires: None,
    };
    Status {
        phase: Phase::Running,
        lease: Some(lease),
        subnet_env_written: true,
        first_list_tried: true,
        ..Status::default()
    }
}

fn answer(code: &str, body: &str) -> (String, String) {
    (code.to_owned(), body.to_owned())
}

#[tokio::test]
async fn health_follows_the_loop() {
    let mut daemon = Daemon::start(Limits { answer: Duration::from_millis(500), ..Limits::default() }).await;
    assert_eq!(daemon.get("/healthz").await, answer("503", "flanneld is stuck"));
    daemon.turn();
    assert_eq!(daemon.get("/healthz").await, answer("200", "flanneld is running"));
}

#[tokio::test]
async fn a_loop_that_ended_is_not_live() {
    let mut daemon = Daemon::start(Limits::default()).await;
    drop(daemon.pings.take());
    assert_eq!(daemon.get("/healthz").await, answer("503", "flanneld is stuck"));
}

#[tokio::test]
async fn readiness_comes_and_goes() {
    let daemon = Daemon::start(Limits::default()).await;
    assert_eq!(daemon.get("/readyz").await, answer("503", "flanneld is not ready yet"));
    daemon.status.send_replace(running());
    assert_eq!(daemon.get("/readyz").await, answer("200", "flanneld is ready"));
    daemon.status.send_modify(|status| status.subnet_env_written = false);
    assert_eq!(daemon.get("/readyz").await, answer("503", "flanneld is not ready yet"));
}

#[tokio::test]
async fn metrics_show_the_status() {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.status.send_replace(running());
    let text = daemon.request("GET", "/metrics").await;
    assert!(text.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    assert!(text.contains("\nflanneld_ready 1\n"), "{text}");
    assert!(text.contains("\nflanneld_lease_age_seconds 10\n"), "{text}");
}

#[tokio::test]
async fn any_method_is_answered_and_other_paths_are_not_found() {
    let mut daemon = Daemon::start(Limits::default()).await;
    daemon.turn();
    for method in ["GET", "POST", "PUT", "DELETE", "BREW"] {
        let text = daemon.request(method, "/healthz?x=y").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("flanneld is running"), "{text}");
        assert!(text.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), "{text}");
    }
    let head = daemon.request("HEAD", "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for path in ["/", "/healthz/", "/healthzz", "/x", "/%2e%2e"] {
        assert_eq!(daemon.get(path).await, answer("404", "404 page not found"), "{path}");
    }
}

#[tokio::test]
async fn junk_and_huge_heads_are_refused() {
    let daemon = Daemon::start(Limits::default()).await;
    let junk = rest(daemon.send(b"\x16\x03\x01 what\r\n\r\n").await).await;
    assert!(junk.is_empty() || junk.starts_with("HTTP/1.1 400 "), "{junk}");
    let mut huge = b"GET /healthz HTTP/1.1\r\nX: ".to_vec();
    huge.resize(4 * HEAD, b'x');
    let huge = rest(daemon.send(&huge).await).await;
    assert!(huge.is_empty() || huge.starts_with("HTTP/1.1 431 "), "{huge}");
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_make_room_for_others() {
    let limits = Limits { connections: 2, connection: Duration::from_millis(500), ..Limits::default() };
    let daemon = Daemon::start(limits).await;
    let silent = daemon.send(b"").await;
    let slow = daemon.send(b"GET /readyz HTTP/1.1\r\nHo").await;
    assert_eq!(daemon.get("/readyz").await.0, "503");
    assert!(!rest(silent).await.contains("flanneld"));
    assert!(!rest(slow).await.contains("flanneld"));
}

#[tokio::test]
async fn a_stop_ends_it_even_with_a_client_hanging() {
    let daemon = Daemon::start(Limits { drain: Duration::from_millis(50), ..Limits::default() }).await;
    let hanging = daemon.send(b"GET /read").await;
    daemon.stop.send(()).unwrap();
    daemon.server.await.unwrap();
    assert!(TcpStream::connect(daemon.address).await.is_err());
    assert_eq!(rest(hanging).await, "");
}

#[tokio::test]
async fn a_busy_port_is_an_error_that_names_it() {
    let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let text = bind(address).await.unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "cannot serve health on {address}: Address already in use (os error 98); \
             stop what listens there or choose another healthz-port"
        )
    );
}
