//! `subnet.env` is deleted, truncated or edited, and its file system full or read-only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use anyhow::{Result, ensure};
use netns_tests::fault::{Scene, Since};
use netns_tests::ping::Ping;
use netns_tests::{Flanneld, Lab, Node, Pod, Spec};
use nix::sys::signal::Signal;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Waits until the daemon has logged some words.
fn says(lab: &Lab, daemon: &Flanneld, words: &str) -> Result<()> {
    lab.eventually(daemon, words, || {
        ensure!(daemon.process().log().contains(words), "not said");
        Ok(())
    })
}

/// Temporary files of a write that did not end.
fn leftovers(node: &Node) -> Result<Vec<String>> {
    let names = node.run("ls -A /run/flannel")?;
    Ok(names.lines().filter(|name| name.starts_with(".subnet.env.")).map(str::to_owned).collect())
}

#[test]
fn subnet_env_is_rewritten_whatever_happens_to_it() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let daemons = lab.flanneld_everywhere()?;
    let (daemon, ping) = (&daemons[0], lab.ping(1, 2)?);
    let scene = Scene::new(&lab, daemon).with_traffic(&ping);
    let node = lab.node(1)?;
    let before = node.read(SUBNET_FILE)?;
    let whole = || {
        let now = node.read(SUBNET_FILE)?;
        ensure!(now == before, "{now:?}");
        let left = leftovers(node)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    };
    let faults = [
        ("subnet.env deleted", "rm /run/flannel/subnet.env"),
        ("subnet.env truncated", "truncate -s 0 /run/flannel/subnet.env"),
        ("subnet.env edited", "sed -i s/1450/9000/ /run/flannel/subnet.env"),
        ("subnet.env moved away", "mv /run/flannel/subnet.env /run/elsewhere"),
        ("subnet.env replaced by a link", "ln -sf /dev/null /run/flannel/subnet.env"),
        ("directory of subnet.env moved away", "mv /run/flannel /run/flannel-old"),
    ];
    for (fault, command) in faults {
        scene.fault(fault, Since::Fault, |node| node.run(command).map(drop), whole)?;
    }
    let directory = |node: &Node| {
        // It is faster than `rm -r`: the directory would not be empty when its turn comes.
        daemon.process().signal(Signal::SIGSTOP)?;
        node.run("rm -r /run/flannel")?;
        daemon.process().signal(Signal::SIGCONT)
    };
    scene.fault("directory of subnet.env deleted", Since::CauseGone, directory, whole)?;
    scene.fault(
        "subnet.env deleted after its directory was",
        Since::Fault,
        |node| node.run("rm /run/flannel/subnet.env").map(drop),
        whole,
    )?;
    let repairs = daemon.metric("flanneld_repairs_total{kind=\"subnet_env\"}")?;
    ensure!(repairs >= 8.0, "{repairs} repairs were counted");
    ping.ensure_none_lost()
}

#[test]
fn a_full_or_read_only_run_is_named_and_the_file_is_written_when_it_is_not_any_more() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let mut daemons = lab.flanneld_everywhere()?;
    let (node, ping) = (lab.node(1)?, lab.ping(1, 2)?);
    daemons.remove(0).stop(Signal::SIGKILL)?;
    // Over the file of the first start.
    node.run("mount -t tmpfs -o size=4k tmpfs /run/flannel")?;
    node.run("dd if=/dev/zero of=/run/flannel/filler bs=4096 count=1")?;
    let mut daemon = lab.launch(1)?;
    says(
        &lab,
        &daemon,
        "No space left on device (os error 28); free space there or choose another subnet-file",
    )?;
    ensure!(daemon.notify().first("READY=1").is_none(), "ready without subnet.env");
    let left = leftovers(node)?;
    ensure!(left.is_empty(), "half a file is left: {left:?}");
    node.run("mount -o remount,ro /run/flannel")?;
    says(&lab, &daemon, "make its file system writable or choose another subnet-file")?;
    node.run("mount -o remount,rw /run/flannel")?;
    node.run("rm /run/flannel/filler")?;
    daemon.wait_ready()?;
    ensure!(node.read(SUBNET_FILE)?.ends_with("FLANNEL_IPMASQ=false\n"), "half a file");
    ping.ensure_none_lost()
}

#[test]
fn a_run_that_fills_up_under_a_running_daemon_costs_no_packet_and_leaves_the_file_whole() -> Result<()> {
    let lab = Lab::start(&Spec { nodes: 2, ..Spec::default() })?;
    let node = lab.node(1)?;
    node.run("mkdir -p /run/flannel")?;
    // A page for the file, and one for another.
    node.run("mount -t tmpfs -o size=8k tmpfs /run/flannel")?;
    let daemons = lab.flanneld_everywhere()?;
    let (from, to) = (Pod::attach(node, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
    let ping = Ping::start(&from, to.address(), "0.002")?;
    let before = node.read(SUBNET_FILE)?;
    let unharmed = || {
        let (now, left) = (node.read(SUBNET_FILE)?, leftovers(node)?);
        ensure!(now == before && left.is_empty(), "{now:?}, and beside it {left:?}");
        ping.wait_answers(100)
    };
    node.run("dd if=/dev/zero of=/run/flannel/filler bs=4096 count=1")?;
    // The file has to say something else from now on.
    node.run("ip link set eth0 mtu 1400")?;
    says(&lab, &daemons[0], "No space left on device (os error 28); free space there or choose another")?;
    unharmed()?;
    node.run("mount -o remount,ro /run/flannel")?;
    says(&lab, &daemons[0], "make its file system writable or choose another subnet-file")?;
    unharmed()?;
    let repair = |node: &Node| {
        node.run("mount -o remount,rw /run/flannel")?;
        node.run("rm /run/flannel/filler").map(drop)
    };
    let whole = || {
        let (now, left) = (node.read(SUBNET_FILE)?, leftovers(node)?);
        ensure!(now == before.replace("1450", "1350") && left.is_empty(), "{now:?}, and beside it {left:?}");
        Ok(())
    };
    let scene = Scene::new(&lab, &daemons[0]).with_traffic(&ping);
    scene.fault(
        "subnet.env outdated while /run was full, then read-only",
        Since::CauseGone,
        repair,
        whole,
    )?;
    let report = ping.finish()?;
    ensure!(report.lost() == 0, "{} packets were lost", report.lost());
    Ok(())
}
