//! Pod-to-pod throughput over the overlay, beside the same two nodes without it. iperf3 sends, so that the figures can be
//! compared with anybody's.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::bed::Subject;
use super::report::Results;
use crate::eventually::eventually;
use crate::flanneld::Flanneld;
use crate::lab::{CONVERGENCE, DEVICE, Lab, Spec};
use crate::namespaces::Entry;
use crate::pod::Pod;
use crate::process::Process;

/// The column of the two nodes themselves.
pub(super) const UNDERLAY: &str = "underlay";
const SECONDS: &str = "4";

/// A kind of traffic: what the table calls it, its unit, and iperf3's words for it.
struct Kind {
    name: &'static str,
    unit: &'static str,
    words: &'static [&'static str],
    pointer: &'static str,
    scale: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "TCP, 1 stream",
        unit: "Gbit/s",
        words: &["-P", "1"],
        pointer: "/end/sum_received/bits_per_second",
        scale: 1e9,
    },
    Kind {
        name: "TCP, 8 streams",
        unit: "Gbit/s",
        words: &["-P", "8"],
        pointer: "/end/sum_received/bits_per_second",
        scale: 1e9,
    },
    Kind {
        name: "UDP, 64 bytes",
        unit: "thousand packets/s",
        words: &["-u", "-b", "0", "-l", "64"],
        pointer: "/end/sum/packets",
        scale: 4e3,
    },
];

/// A way to have the device: how the row is called, how it is made before the daemon starts (its own way if not at all), and what is
/// done once the daemon is ready. Our daemon leaves alone what it does not ask for itself.
struct Variant {
    name: &'static str,
    made: Option<Made>,
    afterwards: Option<&'static str>,
}

/// Further words for `ip link add … type vxlan …`.
struct Made {
    before_type: &'static str,
    after_type: &'static str,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "", made: None, afterwards: None },
    Variant {
        name: ", no UDP checksum",
        made: Some(Made { before_type: "", after_type: "noudpcsum" }),
        afterwards: None,
    },
    Variant {
        name: ", 4 queues",
        made: Some(Made { before_type: "numtxqueues 4 numrxqueues 4", after_type: "" }),
        afterwards: None,
    },
    Variant { name: ", checksum offload off", made: None, afterwards: Some("ethtool -K flannel.1 tx off") },
];

/// Measures the first subject's overlay as it makes it and with other attributes of the device, beside the underlay: all of them in
/// each run, since the machine's speed changes.
pub(super) fn measure(subject: &Subject, runs: u32, results: &mut Results) -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = start(&lab, subject)?;
    let (from, to) = (Pod::attach(lab.node(1)?, "a")?, Pod::attach(lab.node(2)?, "b")?);
    let to_address = to.address().to_string();
    let _node_server = server(&lab, None)?;
    let _pod_server = server(&lab, Some(&to))?;
    for _ in 0..runs {
        for kind in &KINDS {
            let under = client(&lab, &Entry::Node, &Lab::public_ip(2).to_string(), kind)?;
            results.add(kind.name, kind.unit, UNDERLAY, under);
        }
        for variant in &VARIANTS {
            for daemon in daemons.drain(..) {
                daemon.stop(Signal::SIGTERM)?;
            }
            remake(&lab, variant)?;
            daemons = start(&lab, subject)?;
            if let Some(command) = variant.afterwards {
                lab.nodes().iter().try_for_each(|node| node.run(command).map(drop))?;
            }
            for kind in &KINDS {
                let over = client(&lab, from.entry(), &to_address, kind)?;
                results.add(&format!("{}{}", kind.name, variant.name), kind.unit, &subject.name, over);
            }
        }
    }
    Ok(())
}

/// Takes the device away, and makes another one where the variant has it made.
fn remake(lab: &Lab, variant: &Variant) -> Result<()> {
    for (number, node) in (1..).zip(lab.nodes()) {
        let mac = node.run(&format!("cat /sys/class/net/{DEVICE}/address"))?;
        node.run(&format!("ip link delete {DEVICE}"))?;
        if let Some(Made { before_type, after_type }) = &variant.made {
            node.run(&format!(
                "ip link add {DEVICE} {before_type} address {} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning {after_type}",
                mac.trim(),
                Lab::public_ip(number),
            ))?;
        }
    }
    Ok(())
}

fn start(lab: &Lab, subject: &Subject) -> Result<Vec<Flanneld>> {
    let mut daemons = Vec::new();
    for number in 1..=2 {
        let mut options = lab.options(number).flag("ip-masq", "true");
        options.program = Some(subject.program.clone());
        let mut daemon = Flanneld::start(lab.node(number)?, &options)?;
        daemon.wait_ready()?;
        daemons.push(daemon);
    }
    lab.wait_converged(&daemons)?;
    Ok(daemons)
}

fn server(lab: &Lab, pod: Option<&Pod>) -> Result<Process> {
    let node = lab.node(2)?;
    let entry = pod.map_or(Entry::Node, |pod| pod.entry().clone());
    let name = if pod.is_some() { "iperf3-pod" } else { "iperf3-node" };
    let mut command = Command::new("iperf3");
    command.arg("--server");
    let process = Process::start_in(node, &entry, name, &mut command)?;
    eventually(CONVERGENCE, "iperf3 listens", || {
        let sockets = node.run_in(&entry, "ss -Htln sport = 5201")?;
        ensure!(!sockets.trim().is_empty(), "not yet");
        Ok(())
    })?;
    Ok(process)
}

fn client(lab: &Lab, entry: &Entry, to: &str, kind: &Kind) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--json", "--time", SECONDS, "--client", to]).args(kind.words);
    command.stdin(Stdio::null());
    let output = lab.node(1)?.output(&mut command, entry)?;
    let answer: Value = serde_json::from_slice(&output.stdout).context("what iperf3 printed")?;
    let value = answer.pointer(kind.pointer).and_then(Value::as_f64);
    let said = answer.get("error").cloned().unwrap_or_default();
    Ok(value.with_context(|| format!("iperf3 -c {to}: {said}"))? / kind.scale)
}
