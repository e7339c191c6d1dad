//! The real `flannel` with Debian's real plugins (package containernetworking-plugins) on the real
//! kernel, in network namespaces that exist only as open files of this process. Needs root, ip, tc,
//! iptables; fails without them.

// Helpers of tests may fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A `json!` literal is handed over, not lent.
#![allow(clippy::needless_pass_by_value)]

mod common;

use common::{Bench, DUAL, Outcome, Run, TWO_NETWORKS, V4, V6, eventually};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

const PLUGINS: &str = "/usr/lib/cni";

/// A network namespace; gone when dropped, or when this process is killed.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: is this root?");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let namespace = namespace.join().unwrap();
        namespace.ip("link set lo up");
        namespace
    }

    /// A path other processes can open, for `CNI_NETNS`.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in a thread inside the namespace; processes it starts are inside as well.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn tool(&self, program: &str, words: &str) -> String {
        let output = self.inside(|| Command::new(program).args(words.split(' ')).output().unwrap());
        assert!(output.status.success(), "{program} {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn ip(&self, words: &str) -> String {
        self.tool("ip", words)
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ip(&format!("-j -d {words}"))).unwrap()
    }

    fn links(&self) -> Vec<String> {
        let links = self.json("link");
        let mut names: Vec<String> = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// The addresses of an interface as CIDRs, without link-local ones.
    fn addresses(&self, device: &str) -> Vec<String> {
        let shown = self.json(&format!("addr show dev {device}"));
        let addresses = shown[0]["addr_info"].as_array().unwrap();
        let global = addresses.iter().filter(|address| address["scope"] == "global");
        global.map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"])).collect()
    }
}

/// One node: a namespace, and a bench whose plugins are the real ones.
struct Node {
    bench: Bench,
    netns: Namespace,
}

impl Node {
    fn new(subnet_env: &str) -> Self {
        assert!(Path::new(PLUGINS).join("bridge").is_file(), "install containernetworking-plugins");
        let bench = Bench::new();
        bench.subnet_env(subnet_env);
        Self { bench, netns: Namespace::new() }
    }

    /// The flannel entry, with host-local's leases inside the bench.
    fn conf(&self, extra: Value) -> Value {
        let mut conf = self.bench.conf(json!({"ipam": {"dataDir": self.bench.path("leases")}}));
        for (key, value) in extra.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    fn call(&self, command: &str, id: &str, netns: &str) -> Run {
        self.bench.call(command).env("CNI_PATH", PLUGINS).env("CNI_CONTAINERID", id).env("CNI_NETNS", netns)
    }

    fn flannel(&self, command: &str, pod: &Pod, conf: &Value) -> Outcome {
        let run = self.call(command, &pod.id, &pod.netns.path()).conf(conf);
        self.netns.inside(|| run.run())
    }

    /// Another plugin of the chain, as libcni calls it.
    fn chained(&self, command: &str, pod: &Pod, conf: Value) -> Outcome {
        let program = Path::new(PLUGINS).join(conf["type"].as_str().unwrap());
        let mut sent = json!({"name": "cni-flannel", "cniVersion": "0.3.1"});
        sent.as_object_mut().unwrap().extend(conf.as_object().unwrap().clone());
        let run = self.call(command, &pod.id, &pod.netns.path()).conf(&sent);
        self.netns.inside(|| run.run_program(&program))
    }

    /// The addresses host-local has given away.
    fn leases(&self) -> Vec<String> {
        let Ok(directory) = fs::read_dir(self.bench.path("leases/cni-flannel")) else { return Vec::new() };
        let names = directory.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    /// Nothing of any pod is left: no state, no lease, no interface but the node's own.
    fn assert_clean(&self, own: &[&str]) {
        assert_eq!(self.bench.state_names(), [""; 0]);
        assert_eq!(self.leases(), [""; 0]);
        let left: Vec<String> =
            self.netns.links().into_iter().filter(|name| !own.contains(&name.as_str())).collect();
        assert_eq!(left, [""; 0]);
    }
}

struct Pod {
    id: String,
    netns: Namespace,
}

impl Pod {
    fn new(id: &str) -> Self {
        Self { id: id.to_owned(), netns: Namespace::new() }
    }

    fn address(&self) -> String {
        self.netns.addresses("eth0").remove(0)
    }

    /// The address without its prefix length.
    fn ip(&self) -> IpAddr {
        self.address().split('/').next().unwrap().parse().unwrap()
    }
}

/// Whether bytes get from a client namespace to a server in a pod. `target` is what the client dials.
fn reaches(client: &Namespace, server: &Pod, port: u16, target: SocketAddr) -> bool {
    let listener = server.netns.inside(|| TcpListener::bind((server.ip(), port)).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(b"hello").unwrap());
        let heard = client.inside(|| {
            let mut heard = String::new();
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(20)).unwrap();
            stream.read_to_string(&mut heard).unwrap();
            heard
        });
        heard == "hello"
    })
}

fn directly(client: &Namespace, server: &Pod) -> bool {
    reaches(client, server, 8080, SocketAddr::new(server.ip(), 8080))
}

#[test]
fn flannel_bridge_host_local_portmap() {
    let node = Node::new(V4);
    let conf = node.conf(json!({"delegate": {"hairpinMode": true, "isDefaultGateway": true}}));
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let result = node.flannel("ADD", &one, &conf).result();
    node.flannel("ADD", &two, &conf).result();
    assert_eq!(result["ips"][0]["address"], one.address());
    assert_eq!((one.address().as_str(), two.address().as_str()), ("10.1.17.2/24", "10.1.17.3/24"));
    assert_eq!(node.netns.addresses("cni0"), ["10.1.17.1/24"]);
    assert_eq!(one.netns.json("link show dev eth0")[0]["mtu"], 1472);
    let routes = one.netns.ip("route");
    for route in ["default via 10.1.17.1", "10.1.0.0/16 via 10.1.17.1"] {
        assert!(routes.contains(route), "{routes}");
    }

    let ports = json!({"portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "runtimeConfig": ports, "prevResult": result});
    node.chained("ADD", &one, portmap.clone()).result();
    assert!(directly(&two.netns, &one) && directly(&one.netns, &two) && directly(&node.netns, &one));
    let mapped = "10.1.17.1:18080".parse().unwrap();
    assert!(reaches(&node.netns, &one, 80, mapped), "portmap");
    assert!(reaches(&two.netns, &one, 80, mapped), "portmap from another pod");

    // DEL backwards, and without subnet.env, as at a node that is being taken down.
    node.bench.no_subnet_env();
    node.chained("DEL", &one, portmap).silent();
    for pod in [&one, &two] {
        node.flannel("DEL", pod, &conf).silent();
        node.flannel("DEL", pod, &conf).silent();
        assert_eq!(pod.netns.links(), ["lo"]);
    }
    node.assert_clean(&["lo", "cni0"]);
}

#[test]
fn flannel_macvlan_on_a_veth() {
    let node = Node::new(V4);
    node.netns.ip("link add up0 type veth peer name up1");
    node.netns.ip("link set up0 up");
    node.netns.ip("link set up1 up");
    let conf = node.conf(json!({"delegate": {"type": "macvlan", "master": "up0"}}));
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    for pod in [&one, &two] {
        node.flannel("ADD", pod, &conf).result();
    }
    assert_eq!((one.address().as_str(), two.address().as_str()), ("10.1.17.2/24", "10.1.17.3/24"));
    let link = one.netns.json("link show dev eth0");
    assert_eq!((&link[0]["mtu"], &link[0]["linkinfo"]["info_kind"]), (&json!(1472), &json!("macvlan")));
    assert!(directly(&two.netns, &one));
    for pod in [&one, &two] {
        node.flannel("DEL", pod, &conf).silent();
        assert_eq!(pod.netns.links(), ["lo"]);
    }
    node.assert_clean(&["lo", "up0", "up1"]);
}

#[test]
fn flannel_bridge_then_bandwidth() {
    let node = Node::new(V4);
    let conf = node.conf(json!({}));
    let pod = Pod::new("one");
    let result = node.flannel("ADD", &pod, &conf).result();
    let rates = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}});
    let bandwidth = json!({"type": "bandwidth", "runtimeConfig": rates, "prevResult": result});
    node.chained("ADD", &pod, bandwidth.clone()).result();
    let shaped = node.netns.tool("tc", "qdisc show");
    assert_eq!(shaped.matches("qdisc tbf").count(), 2, "{shaped}");
    assert!(directly(&node.netns, &pod));
    node.chained("DEL", &pod, bandwidth).silent();
    node.flannel("DEL", &pod, &conf).silent();
    node.assert_clean(&["lo", "cni0"]);
}

/// Upstream's four lifecycle cases with the plugins they were written for.
#[test]
fn upstream_s_lifecycle_for_every_fixture() {
    for (subnet_env, addresses) in [
        (V4, &["10.1.17.2/24"][..]),
        (V6, &["fc00::2/64"]),
        (DUAL, &["10.1.17.2/24", "fc00::2/64"]),
        (TWO_NETWORKS, &["10.1.17.2/24"]),
    ] {
        let node = Node::new(subnet_env);
        let conf = node.conf(json!({}));
        let pod = Pod::new("one");
        let result = node.flannel("ADD", &pod, &conf).result();
        assert_eq!(result["ips"].as_array().unwrap().len(), addresses.len());
        assert_eq!(pod.netns.addresses("eth0"), addresses);
        assert_eq!(node.bench.state_names(), ["one"]);
        node.flannel("DEL", &pod, &conf).silent();
        node.flannel("DEL", &pod, &conf).silent();
        node.assert_clean(&["lo", "cni0"]);
    }
}

#[test]
fn an_add_the_bridge_fails_leaves_no_veth_and_can_be_repeated() {
    // Room for one pod.
    let node = Node::new(&V4.replace("10.1.17.1/24", "10.1.17.1/30"));
    let conf = node.conf(json!({}));
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    node.flannel("ADD", &one, &conf).result();
    let before = node.netns.links();
    assert!(node.flannel("ADD", &two, &conf).refused(999).contains("no IP addresses available"));
    assert_eq!((two.netns.links(), node.netns.links()), (vec!["lo".to_owned()], before));
    assert_eq!(node.bench.state_names(), ["one"]);
    node.flannel("DEL", &one, &conf).silent();
    node.flannel("ADD", &two, &conf).result();
    node.flannel("DEL", &two, &conf).silent();
    node.assert_clean(&["lo", "cni0"]);
}

#[test]
fn a_pod_of_the_go_plugin_is_detached_with_the_state_it_left() {
    let node = Node::new(V4);
    let pod = Pod::new("one");
    let conf = node.conf(json!({}));
    node.flannel("ADD", &pod, &conf).result();
    // The Go plugin's file is the same document without our key.
    let go = node.bench.saved("one");
    node.bench.write_state("one", &go.to_string());
    node.bench.no_subnet_env();
    node.flannel("DEL", &pod, &conf).silent();
    node.assert_clean(&["lo", "cni0"]);
}

#[test]
fn a_second_interface_is_detached_on_its_own() {
    let node = Node::new(V4);
    let pod = Pod::new("one");
    let conf = node.conf(json!({}));
    let on = |command: &str, ifname: &str| {
        let run = node.call(command, "one", &pod.netns.path()).env("CNI_IFNAME", ifname).conf(&conf);
        node.netns.inside(|| run.run())
    };
    on("ADD", "eth0").result();
    on("ADD", "net1").result();
    on("DEL", "eth0").silent();
    assert_eq!((pod.netns.links(), node.leases().len()), (vec!["lo".to_owned(), "net1".to_owned()], 1));
    on("DEL", "net1").silent();
    node.assert_clean(&["lo", "cni0"]);
}

#[test]
fn gc_frees_the_address_of_a_container_that_is_gone() {
    let node = Node::new(V4);
    // 1.0.0 is the newest these plugins speak, so the state is written at that version.
    let conf = node.conf(json!({"cniVersion": "1.0.0"}));
    let (live, gone) = (Pod::new("live"), Pod::new("gone"));
    for pod in [&live, &gone] {
        node.flannel("ADD", pod, &conf).result();
    }
    drop(gone);
    let list = json!([{"containerID": "live", "ifname": "eth0"}]);
    let gc = node
        .call("GC", "", "")
        .conf(&node.conf(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": list})));
    // The bridge of Debian 12 knows no GC, which is reported after our own work.
    node.netns.inside(|| gc.run());
    assert_eq!(
        (node.bench.state_names(), node.leases()),
        (vec!["live".to_owned()], vec!["10.1.17.2".to_owned()])
    );
    node.flannel("DEL", &live, &conf).silent();
}

#[test]
fn a_bridge_of_a_former_subnet_is_explained() {
    let node = Node::new(&V4.replace("10.1.17.1", "10.1.5.1"));
    let conf = node.conf(json!({}));
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    node.flannel("ADD", &old, &conf).result();
    node.bench.subnet_env(V4);
    let text = node.flannel("ADD", &new, &conf).refused(999);
    for part in [
        "\"cni0\"",
        "10.1.5.1/24",
        "10.1.5.0/24",
        "10.1.17.0/24",
        "ip addr del 10.1.5.1/24 dev cni0",
        "forceAddress",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(
        (new.netns.links(), node.bench.state_names()),
        (vec!["lo".to_owned()], vec!["old".to_owned()])
    );
    let status = node.call("STATUS", "", "").conf(&node.conf(json!({"cniVersion": "1.1.0"})));
    assert!(node.netns.inside(|| status.run()).refused(50).contains("10.1.5.0/24"));
}

#[test]
fn a_bridge_of_a_former_subnet_is_repaired_once_no_pod_uses_it() {
    let node = Node::new(&V4.replace("10.1.17.1", "10.1.5.1"));
    let conf = node.conf(json!({"repairBridgeAddress": true}));
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    node.flannel("ADD", &old, &conf).result();
    node.bench.subnet_env(V4);
    let text = node.flannel("ADD", &new, &conf).refused(999);
    assert!(text.contains("not repaired: interfaces attached to the bridge: 1, container old"), "{text}");
    node.flannel("DEL", &old, &conf).silent();
    let outcome = node.flannel("ADD", &new, &conf);
    outcome.result();
    assert!(outcome.stderr.contains("removed the former address"), "{}", outcome.stderr);
    assert_eq!(node.netns.addresses("cni0"), ["10.1.17.1/24"]);
    assert!(directly(&node.netns, &new));
    node.flannel("DEL", &new, &conf).silent();
    node.assert_clean(&["lo", "cni0"]);
}

#[test]
fn a_repair_leaves_a_bridge_alone_that_something_else_is_plugged_into() {
    let node = Node::new(V4);
    for words in [
        "link add cni0 address 0a:58:0a:01:05:01 type bridge",
        "addr add 10.1.5.1/24 dev cni0",
        "link set cni0 up",
        "link add v0 type veth peer name v1",
        "link set v0 master cni0",
    ] {
        node.netns.ip(words);
    }
    let conf = node.conf(json!({"repairBridgeAddress": true}));
    let pod = Pod::new("one");
    assert!(node.flannel("ADD", &pod, &conf).refused(999).contains("attached to the bridge: 1"));
    assert_eq!(node.netns.addresses("cni0"), ["10.1.5.1/24"]);
    node.netns.ip("link del v0");
    node.flannel("ADD", &pod, &conf).result();
}

/// As with the fake delegate, but what is counted at the end is the kernel's and host-local's. Two runs of three are
/// killed: the plugin alone, which leaves its delegates at work, or with all of them.
#[test]
fn fifty_parallel_pods_with_random_kills_leave_no_veth_no_address_no_state() {
    let node = Node::new(V4);
    let conf = node.conf(json!({}));
    let pods: Vec<Pod> = (0..50).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let run = |command: &str, pod: &Pod| {
        let mut child =
            node.netns.inside(|| node.call(command, &pod.id, &pod.netns.path()).conf(&conf).start());
        let dice = RandomState::new().hash_one(&pod.id);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        if !dice.is_multiple_of(3) {
            thread::sleep(Duration::from_micros(dice % 300_000));
            let _ = if dice.is_multiple_of(2) {
                kill(pid, Signal::SIGKILL)
            } else {
                killpg(pid, Signal::SIGKILL)
            };
        }
        child.wait().unwrap().code()
    };
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                run("ADD", pod);
                eventually("DEL succeeds", || (run("DEL", pod) == Some(0)).then_some(()));
            });
        }
    });
    for pod in &pods {
        assert_eq!(pod.netns.links(), ["lo"], "{}", pod.id);
    }
    node.assert_clean(&["lo", "cni0"]);
}
