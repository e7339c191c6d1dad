//! `cargo lab demo`: the main job in front of a person's eyes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::table::table;
use crate::command::{kept, packages};
use crate::eventually::eventually;
use crate::flanneld::Flanneld;
use crate::lab::{DEVICE, Lab, Spec};
use crate::observe;
use crate::ping::{Ping, ping_once};
use crate::pod::Pod;
use crate::tcp;
use crate::underlay::Underlay;
use crate::{binaries, lab};

/// All throughput measurements together take about this long.
const THROUGHPUT_TIME: Duration = Duration::from_secs(5);

/// Options of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=30))]
    nodes: u8,
    /// leave everything running
    #[arg(long)]
    keep: bool,
    /// what connects the nodes
    #[arg(long, value_enum, default_value_t = UnderlayChoice::Veth)]
    underlay: UnderlayChoice,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UnderlayChoice {
    /// a bridge with MTU 1500
    Veth,
    /// wireguard-go with MTU 1420
    Wireguard,
}

/// Runs the demo.
///
/// # Errors
/// When something is missing or does not work; also when a packet is lost.
pub fn run(args: &DemoArgs) -> Result<()> {
    packages::ensure_present()?;
    println!("building flanneld and flannel");
    binaries::flanneld()?;
    let mut show = Show { start: Instant::now() };
    let underlay = match args.underlay {
        UnderlayChoice::Veth => Underlay::veth(),
        UnderlayChoice::Wireguard => Underlay::WireGuard,
    };
    let lab = Lab::start(&Spec { nodes: args.nodes, underlay, ..Spec::default() })?;
    show.step(&format!("{} nodes and etcd stand, each in namespaces of its own", args.nodes));
    println!("           (files in {})", lab.folder().path().display());
    let (mut daemons, ready) = show.start_daemons(&lab)?;
    let pods = show.start_pods(&lab)?;
    show_nodes(&lab, &ready)?;
    show_traffic(&pods)?;
    show_kernel(&lab)?;
    show.kill_one(&lab, &mut daemons, &pods)?;
    if args.keep {
        return leave_running(lab, daemons, pods);
    }
    drop((pods, daemons, lab));
    show.step("cleaned up");
    Ok(())
}

struct Show {
    start: Instant,
}

impl Show {
    fn step(&mut self, text: &str) {
        println!("[{:6.2} s] {text}", self.start.elapsed().as_secs_f64());
    }

    fn start_daemons(&mut self, lab: &Lab) -> Result<(Vec<Flanneld>, Vec<Duration>)> {
        let (mut daemons, mut ready) = (Vec::new(), Vec::new());
        for number in (1..).take(lab.nodes().len()) {
            let mut daemon = lab.launch(number)?;
            let after = daemon.wait_ready()?;
            let subnet = lab.lease(number)?.subnet;
            self.step(&format!(
                "flanneld on node{number} is ready after {:.1} ms and holds {subnet}",
                milliseconds(after)
            ));
            daemons.push(daemon);
            ready.push(after);
        }
        lab.wait_converged(&daemons)?;
        self.step("every kernel holds a route, a neighbour and an FDB entry for every other node");
        Ok((daemons, ready))
    }

    fn start_pods(&mut self, lab: &Lab) -> Result<Vec<Pod>> {
        let mut pods = Vec::new();
        for (number, node) in (1..).zip(lab.nodes()) {
            let pod = Pod::attach(node, &format!("pod{number}"))?;
            self.step(&format!(
                "pod{number} on {} got {} from flannel → bridge → portmap",
                node.name(),
                pod.address()
            ));
            pods.push(pod);
        }
        Ok(pods)
    }

    /// Kills the second node's daemon and starts it again while the first pod pings the second.
    fn kill_one(&mut self, lab: &Lab, daemons: &mut Vec<Flanneld>, pods: &[Pod]) -> Result<()> {
        println!();
        let (from, to) = (pods.first().context("no pod")?, pods.get(1).context("no second pod")?);
        let ping = Ping::start(from, to.address(), "0.002")?;
        ping.wait_answers(200)?;
        self.step("pod1 pings pod2 500 times a second; flanneld on node2 is killed with SIGKILL");
        ensure!(daemons.len() > 1, "no second daemon");
        daemons.remove(1).stop(Signal::SIGKILL)?;
        ping.wait_answers(500)?;
        let daemon = lab.flanneld(2)?;
        daemons.insert(1, daemon);
        self.step("flanneld on node2 runs again");
        ping.wait_answers(500)?;
        let report = ping.finish()?;
        println!("packets lost: {} (of {})", report.lost(), report.last);
        ensure!(report.lost() == 0, "a restart must not lose packets");
        Ok(())
    }
}

fn show_nodes(lab: &Lab, ready: &[Duration]) -> Result<()> {
    let mut rows = Vec::new();
    for ((number, node), ready) in (1..).zip(lab.nodes()).zip(ready) {
        let lease = lab.lease(number)?;
        let mtu = observe::link(node, DEVICE)?.get("mtu").and_then(Value::as_u64).unwrap_or_default();
        rows.push(vec![
            node.name().to_owned(),
            lease.public_ip.to_string(),
            lease.subnet,
            lease.vtep_mac,
            mtu.to_string(),
            format!("{:.1}", milliseconds(*ready)),
        ]);
    }
    let headings = ["node", "public IP", "lease", "VTEP MAC", "MTU", "ready after ms"];
    println!("\n{}", table(&headings, &rows));
    Ok(())
}

fn show_traffic(pods: &[Pod]) -> Result<()> {
    for (from, to) in pairs(pods) {
        eventually(lab::CONVERGENCE, "pods reach each other", || ping_once(from, to.address()))?;
    }
    let time = |from: &Pod, to: &Pod| Ok(format!("{:.2}", ping_once(from, to.address())?));
    println!("ping between pods, ms\n{}", matrix(pods, time)?);
    let count = u32::try_from(pairs(pods).count()).unwrap_or(u32::MAX).max(1);
    let each = (THROUGHPUT_TIME / count).min(Duration::from_millis(500));
    let rate = |from: &Pod, to: &Pod| Ok(format!("{:.2}", tcp::throughput(from, to, each)?.rate() / 1e9));
    println!("TCP between pods, Gbit/s, every byte checked\n{}", matrix(pods, rate)?);
    Ok(())
}

/// A table with a row for each sender and a column for each receiver.
fn matrix(pods: &[Pod], cell: impl Fn(&Pod, &Pod) -> Result<String>) -> Result<String> {
    let mut headings = vec!["from \\ to"];
    headings.extend(pods.iter().map(Pod::name));
    let mut rows = Vec::new();
    for from in pods {
        let mut row = vec![from.name().to_owned()];
        for to in pods {
            row.push(if std::ptr::eq(from, to) { "-".to_owned() } else { cell(from, to)? });
        }
        rows.push(row);
    }
    Ok(table(&headings, &rows))
}

fn pairs(pods: &[Pod]) -> impl Iterator<Item = (&Pod, &Pod)> {
    pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))).filter(|(a, b)| !std::ptr::eq(*a, *b))
}

fn show_kernel(lab: &Lab) -> Result<()> {
    let node = lab.node(1)?;
    println!("what the kernel of {} holds", node.name());
    let link = format!("ip -d link show {DEVICE}");
    let routes = format!("ip -d route show dev {DEVICE}");
    let neighbours = format!("ip neigh show dev {DEVICE} nud permanent");
    let fdb = format!("bridge fdb show dev {DEVICE}");
    for line in [link, routes, neighbours, fdb] {
        println!("  # {line}");
        for shown in node.run(&line)?.lines() {
            println!("  {}", shown.trim_end());
        }
    }
    Ok(())
}

/// Hands everything over to the holders; the values are forgotten because dropping them would end it.
fn leave_running(lab: Lab, daemons: Vec<Flanneld>, pods: Vec<Pod>) -> Result<()> {
    kept::keep(&lab, &pods)?;
    std::mem::forget((pods, daemons, lab));
    println!("\nit keeps running; enter a node or pod, then end it:");
    println!("  cargo lab exec node1 -- ip route");
    println!("  cargo lab exec pod1 -- ip address");
    println!("  cargo lab exec etcd1 -- env ETCDCTL_API=3 etcdctl get --prefix {}/", lab::PREFIX);
    println!("  cargo lab down");
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
