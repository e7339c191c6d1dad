//! A node with pods, another node and the world outside, each in a network namespace that dies with the value.
//!
//! A namespace has no name and no process: only file descriptors hold it. `/run` is private in each, so that the lock of
//! iptables is not the host's. Whoever cannot make namespaces fails here.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// How long a packet may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// A network namespace with a mount namespace.
pub(crate) struct Namespace {
    net: File,
    mnt: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("these tests need root: they make network namespaces");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let open = |name| File::open(format!("/proc/thread-self/ns/{name}")).unwrap();
            Self { net: open("net"), mnt: open("mnt") }
        });
        let namespace = made.join().expect("a namespace could not be made");
        namespace.sh("ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward
            for i in all default; do echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter; done");
        namespace
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(&self.net, CloneFlags::CLONE_NEWNET).unwrap();
                setns(&self.mnt, CloneFlags::CLONE_NEWNS).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future inside, on a runtime like the daemon's.
    pub(crate) fn block_on<R: Send>(&self, work: impl AsyncFnOnce() -> R + Send) -> R {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    fn shell(&self, script: &str) -> Output {
        self.run(|| Command::new("sh").args(["-ec", script]).output().unwrap())
    }

    /// Runs a shell script inside; it has to succeed. Answers with what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.shell(script);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Feeds a text to a program inside; it has to succeed.
    pub(crate) fn feed(&self, program: &str, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        self.sh(&format!("{program} < {}", file.path().display()));
    }

    /// A path other programs can open as long as the value lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// A UDP socket inside.
    pub(crate) fn socket(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }
}

/// Addresses of the lab. The overlay is 10.200.0.0/16, this node's part of it 10.200.43.0/24.
pub(crate) mod address {
    use std::net::Ipv4Addr;

    pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 200, 43, 2);
    pub(crate) const POD_TWO: Ipv4Addr = Ipv4Addr::new(10, 200, 43, 3);
    pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 200, 43, 1);
    pub(crate) const VTEP: Ipv4Addr = Ipv4Addr::new(10, 200, 43, 0);
    pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 111);
    pub(crate) const PEER_POD: Ipv4Addr = Ipv4Addr::new(10, 200, 16, 2);
    pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
    pub(crate) const UNRELATED: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 2);
    pub(crate) const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
}

/// Port without a meaning.
pub(crate) const PLAIN: u16 = 7000;
/// Ports whose packets the node marks, as kube-proxy would, and the marks.
pub(crate) const MARKED: [(u16, u32); 3] = [(7001, 0x4000), (7002, 0x1_4000), (7003, 0x1)];
/// Node port of the other node's pod; masqueraded by kube-proxy.
pub(crate) const NODE_PORT: u16 = 30080;
/// Node port of our pod; not masqueraded (`externalTrafficPolicy: Local`).
pub(crate) const LOCAL_NODE_PORT: u16 = 30081;
/// Node port of our pod, masqueraded: the pod reaches itself through it.
pub(crate) const HAIRPIN_PORT: u16 = 30082;

/// The whole set-up.
pub(crate) struct Lab {
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) pod_two: Namespace,
    pub(crate) peer: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) unrelated: Namespace,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self {
            node: Namespace::new(),
            pod: Namespace::new(),
            pod_two: Namespace::new(),
            peer: Namespace::new(),
            outside: Namespace::new(),
            unrelated: Namespace::new(),
        };
        lab.pod_link(&lab.pod, "p1", address::POD);
        lab.pod_link(&lab.pod_two, "p2", address::POD_TWO);
        lab.link("flannel.1", &lab.peer);
        lab.link("wg0", &lab.outside);
        lab.link("unrelated", &lab.unrelated);
        lab.node.sh("ip addr add 10.200.43.0/32 dev flannel.1; ip addr add 10.8.0.111/24 dev wg0
            ip addr add 172.20.0.1/24 dev unrelated
            ip route add 10.200.0.0/16 via 10.200.16.0 dev flannel.1 onlink; ip route add default via 10.8.0.1");
        lab.peer.sh("ip addr add 10.200.16.0/32 dev eth0; ip addr add 10.200.16.2/32 dev lo
            ip route add default via 10.200.43.0 dev eth0 onlink src 10.200.16.2");
        lab.outside.sh("ip addr add 10.8.0.1/24 dev eth0; ip route add default via 10.8.0.111");
        lab.unrelated.sh("ip addr add 172.20.0.2/24 dev eth0; ip route add default via 172.20.0.1");
        lab
    }

    /// A veth pair between the node (as `name`) and another namespace (as `eth0`), up on both ends.
    fn link(&self, name: &str, other: &Namespace) {
        let path = other.path();
        self.node
            .sh(&format!("ip link add {name} type veth peer name eth0 netns {path}; ip link set {name} up"));
        other.sh("ip link set eth0 up");
    }

    fn pod_link(&self, pod: &Namespace, name: &str, ip: Ipv4Addr) {
        self.link(name, pod);
        self.node.sh(&format!("ip addr add 10.200.43.1/32 dev {name}; ip route add {ip}/32 dev {name}"));
        pod.sh(&format!(
            "ip addr add {ip}/32 dev eth0; ip route add default via 10.200.43.1 dev eth0 onlink"
        ));
    }

    /// What kube-proxy would do: marks, node ports, and masquerade for what is marked.
    pub(crate) fn add_services(&self) {
        let marks: String =
            MARKED.map(|(port, mark)| format!("udp dport {port} meta mark set {mark}\n")).concat();
        self.node.feed("nft -f -", &format!(
            "table ip kube {{
                chain marks {{ type filter hook prerouting priority mangle; {marks} }}
                chain services {{ type nat hook prerouting priority dstnat
                    ip daddr 10.8.0.111 udp dport {NODE_PORT} meta mark set mark or 0x4000 dnat to {peer}:{PLAIN}
                    ip daddr 10.8.0.111 udp dport {LOCAL_NODE_PORT} dnat to {pod}:{PLAIN}
                    ip daddr 10.8.0.111 udp dport {HAIRPIN_PORT} meta mark set mark or 0x4000 dnat to {pod}:{PLAIN}
                }}
                chain sources {{ type nat hook postrouting priority srcnat + 10
                    ct status dnat meta mark & 0x4000 == 0x4000 masquerade
                }}
            }}",
            peer = address::PEER_POD,
            pod = address::POD,
        ));
    }
}

/// A new flow: one packet there and one back. Answers with the source address the receiver saw.
pub(crate) fn flow(sender: &UdpSocket, to: SocketAddr, receiver: &UdpSocket) -> Ipv4Addr {
    let mut buffer = [0; 16];
    sender.send_to(b"ping", to).unwrap();
    let (length, from) = receiver.recv_from(&mut buffer).expect("the packet did not arrive");
    assert_eq!(&buffer[..length], b"ping");
    receiver.send_to(b"pong", from).unwrap();
    let (length, _) = sender.recv_from(&mut buffer).expect("the answer did not arrive");
    assert_eq!(&buffer[..length], b"pong");
    match from {
        SocketAddr::V4(from) => *from.ip(),
        SocketAddr::V6(_) => unreachable!(),
    }
}
