//! Container engines that nobody here wrote call the CNI plugin as they call any other: podman with its CNI backend and
//! containerd's `ctr`, in nodes with real daemons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::containerd::Containerd;
use netns_tests::containers::PAGE;
use netns_tests::flanneld::SUBNET_FILE;
use netns_tests::podman::Podman;
use netns_tests::{Lab, Node, Pod, Spec, cgroups, eventually, http};
use nix::sys::signal::Signal;

/// A server needs a moment until it listens, and podman returns before.
const SOON: Duration = Duration::from_secs(30);
const SERVER: [&str; 6] = ["/bin/httpd", "-f", "-p", "80", "-h", "/www"];

fn two_nodes() -> Result<Lab> {
    Lab::start(&Spec { nodes: 2, ..Spec::default() })
}

/// The address in the output of `ip -4 addr show eth0`. It must be of the node's own subnet: an engine that does not
/// like the conflist may bring a network of its own.
fn address_in(shown: &str, node: &Node) -> Result<Ipv4Addr> {
    let cidr = shown
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)
        .with_context(|| format!("no address in {shown:?}"))?;
    let (address, prefix) = cidr.split_once('/').context("no prefix")?;
    let address: Ipv4Addr = address.parse()?;
    let env = node.read(SUBNET_FILE)?;
    let subnet = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).context("no subnet")?;
    let (gateway, length) = subnet.split_once('/').context("no prefix")?;
    let gateway: Ipv4Addr = gateway.parse()?;
    ensure!(
        (prefix, &address.octets()[..3]) == (length, &gateway.octets()[..3]),
        "{cidr} is not of {subnet}, which flanneld leased"
    );
    Ok(address)
}

fn gateway_of(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// State files of the plugin and addresses host-local has given away.
fn held(node: &Node) -> Result<Vec<String>> {
    let listed = node.run("find /var/lib/cni/flannel /var/lib/cni/networks/cni0 -type f -printf %P\\n")?;
    let names = listed.lines().filter(|name| *name != "lock" && !name.starts_with("last_reserved_ip"));
    Ok(names.map(str::to_owned).collect())
}

fn ensure_nothing_is_held(node: &Node) -> Result<()> {
    let held = held(node)?;
    ensure!(held.is_empty(), "{} still holds {held:?}", node.name());
    let veths = node.run("ip -br link show type veth")?;
    let left: Vec<&str> = veths.lines().filter(|line| line.starts_with("veth")).collect();
    ensure!(left.is_empty(), "{} still has {left:?}", node.name());
    Ok(())
}

/// What a container's shell types to get the page.
fn fetch(from: Ipv4Addr, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {from} {port}")
}

fn address_of(podman: &Podman, name: &str, node: &Node) -> Result<Ipv4Addr> {
    address_in(&podman.exec(name, "ip -4 addr show eth0")?, node)
}

#[test]
fn podman_containers_on_two_nodes() -> Result<()> {
    let lab = two_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    let podmen = [Podman::on(lab.node(1)?)?, Podman::on(lab.node(2)?)?];
    containers_reach_each_other(&lab, &podmen)?;
    a_published_port_is_reached(&lab, &podmen[0])?;
    address_and_mac_can_be_chosen(&lab, &podmen[0])?;
    a_container_is_disconnected_and_connected(&lab, &podmen)?;
    // A running daemon would write its file again; a stopped one leaves the data plane up.
    daemons.remove(0).stop(Signal::SIGTERM)?;
    without_subnet_env_containers_go_but_none_comes(&lab, &podmen[0])
}

fn containers_reach_each_other(lab: &Lab, [one, two]: &[Podman; 2]) -> Result<()> {
    two.start("far", &[], &SERVER)?;
    let far = address_of(two, "far", lab.node(2)?)?;
    let script = format!("ip -4 addr show eth0; ip route; ip link show eth0; ping -c 1 -W 2 {far}");
    let said = one.run(&["--cap-add", "NET_RAW"], &["/bin/sh", "-c", &script])?;
    let own = address_in(&said, lab.node(1)?)?;
    let gateway = gateway_of(own);
    for part in
        [format!("default via {gateway}"), format!("10.200.0.0/16 via {gateway}"), "mtu 1450".to_owned()]
    {
        assert!(said.contains(&part), "no `{part}` in {said}");
    }
    one.start("near", &[], &["/bin/sleep", "1000"])?;
    eventually(SOON, "a page from the other node", || {
        let page = one.exec("near", &fetch(far, 80))?;
        ensure!(page.contains(PAGE), "{page}");
        Ok(())
    })?;
    one.call(&["rm", "-f", "-t", "0", "near"])?;
    two.call(&["rm", "-f", "-t", "0", "far"])?;
    lab.nodes().iter().try_for_each(|node| ensure_nothing_is_held(node))
}

/// `-p` goes through portmap: from another machine, and from the container itself through the node (hairpin).
fn a_published_port_is_reached(lab: &Lab, podman: &Podman) -> Result<()> {
    podman.start("web", &["-p", "18080:80"], &SERVER)?;
    let published = SocketAddr::from((Lab::public_ip(1), 18080));
    let from_outside = || lab.node(2)?.in_network(|| http::get(published, "/"));
    let (status, page) = eventually(SOON, "the published port answers", from_outside)?;
    assert_eq!((status, page.as_str()), (200, PAGE));
    let gateway = gateway_of(address_of(podman, "web", lab.node(1)?)?);
    assert!(podman.exec("web", &fetch(gateway, 18080))?.contains(PAGE), "hairpin");
    podman.call(&["rm", "-f", "-t", "0", "web"])?;
    assert!(from_outside().is_err());
    ensure_nothing_is_held(lab.node(1)?)
}

/// They reach the plugin as `CNI_ARGS` only.
fn address_and_mac_can_be_chosen(lab: &Lab, podman: &Podman) -> Result<()> {
    let node = lab.node(1)?;
    let shown = podman.run(&[], &["/bin/ip", "-4", "addr", "show", "eth0"])?;
    let [a, b, c, _] = address_in(&shown, node)?.octets();
    let wanted = Ipv4Addr::new(a, b, c, 77);
    let options = ["--ip", &wanted.to_string(), "--mac-address", "02:00:00:00:00:77"];
    let shown = podman.run(&options, &["/bin/ip", "addr", "show", "eth0"])?;
    assert_eq!(address_in(&shown, node)?, wanted);
    assert!(shown.contains("link/ether 02:00:00:00:00:77"), "{shown}");
    ensure_nothing_is_held(node)
}

fn a_container_is_disconnected_and_connected(lab: &Lab, [one, two]: &[Podman; 2]) -> Result<()> {
    let node = lab.node(1)?;
    one.start("moved", &[], &SERVER)?;
    address_of(one, "moved", node)?;
    one.call(&["network", "disconnect", "cni0", "moved"])?;
    assert!(address_of(one, "moved", node).is_err());
    ensure_nothing_is_held(node)?;
    one.call(&["network", "connect", "cni0", "moved"])?;
    let address = address_of(one, "moved", node)?;
    let said = two.run(&[], &["/bin/sh", "-c", &fetch(address, 80)])?;
    assert!(said.contains(PAGE), "{said}");
    one.call(&["rm", "-f", "-t", "0", "moved"])?;
    ensure_nothing_is_held(node)
}

/// As on a node that was rebooted and waits for etcd, or that is being taken down.
fn without_subnet_env_containers_go_but_none_comes(lab: &Lab, podman: &Podman) -> Result<()> {
    let node = lab.node(1)?;
    podman.start("last", &["-p", "18081:80"], &SERVER)?;
    node.run(&format!("mv {SUBNET_FILE} {SUBNET_FILE}.away"))?;
    podman.call(&["rm", "-f", "-t", "0", "last"])?;
    ensure_nothing_is_held(node)?;
    let error = podman.run(&[], &["/bin/ip", "addr"]).unwrap_err().to_string();
    for part in [SUBNET_FILE, "no such file", "flanneld's log"] {
        assert!(error.to_lowercase().contains(part), "no `{part}` in {error}");
    }
    ensure_nothing_is_held(node)?;
    node.run(&format!("mv {SUBNET_FILE}.away {SUBNET_FILE}"))?;
    address_in(&podman.run(&[], &["/bin/ip", "-4", "addr", "show", "eth0"])?, node).map(drop)
}

#[test]
fn containerd_containers_through_ctr() -> Result<()> {
    let lab = two_nodes()?;
    let mut daemons = lab.flanneld_everywhere()?;
    let node = lab.node(1)?;
    let containerd = Containerd::start(node)?;
    let far = Pod::attach(lab.node(2)?, "far")?;
    let script = format!("ip -4 addr show eth0; ip route; ping -c 1 -W 2 {}", far.address());
    let said = containerd.run("one", &["/bin/sh", "-c", &script])?;
    let gateway = gateway_of(address_in(&said, node)?);
    assert!(said.contains(&format!("default via {gateway}")), "{said}");
    // The kernel takes the veth along with the namespace, in its own time.
    eventually(SOON, "nothing is held", || ensure_nothing_is_held(node))?;
    daemons.remove(0).stop(Signal::SIGTERM)?;
    a_server_is_reached_and_killed_while_subnet_env_is_gone(node, &containerd, &far)?;
    let error = containerd.run("none", &["/bin/ip", "addr"]).unwrap_err().to_string();
    assert!(error.contains(SUBNET_FILE) && error.contains("flanneld's log"), "{error}");
    ensure_nothing_is_held(node)?;
    // What no namespace takes along at its end.
    let folder = lab.folder().path().to_path_buf();
    assert!(!cgroups::of(&folder)?.is_empty());
    drop((daemons, containerd, far, lab));
    assert_eq!(cgroups::of(&folder)?, Vec::<PathBuf>::new());
    Ok(())
}

/// `ctr` waits for the container and then sends a DEL without a namespace, because that died with the container.
fn a_server_is_reached_and_killed_while_subnet_env_is_gone(
    node: &Node,
    containerd: &Containerd,
    far: &Pod,
) -> Result<()> {
    let mut ctr = containerd.launch("web", &SERVER)?;
    let look = ["task", "exec", "--exec-id", "look", "web", "/bin/ip", "-4", "addr", "show", "eth0"];
    let address = eventually(SOON, "the container runs", || address_in(&containerd.ctr(&look)?, node))?;
    let page = || far.in_network(|| http::get((address, 80).into(), "/"));
    assert_eq!(eventually(SOON, "a page from the other node", page)?, (200, PAGE.to_owned()));
    assert_eq!(held(node)?.len(), 2, "a state file and an address");
    node.run(&format!("rm {SUBNET_FILE}"))?;
    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "web"])?;
    ctr.wait(SOON)?;
    eventually(SOON, "nothing is held", || ensure_nothing_is_held(node))
}
