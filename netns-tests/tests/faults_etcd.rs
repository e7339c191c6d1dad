//! etcd fails under traffic: meanwhile no kernel is touched and no packet lost; afterwards everything converges, and every node
//! has its lease, of the same subnet.
//!
//! Times count from the first answer of an etcd that is whole again, and a new peer is written in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use netns_tests::etcd_faults::{break_connections, connections};
use netns_tests::fault::{Scene, Since};
use netns_tests::lab::{CONVERGENCE, DEVICE, PREFIX};
use netns_tests::monitor::Recorder;
use netns_tests::ping::Ping;
use netns_tests::{Flanneld, Lab, Options, Pod, Spec, eventually, lease, throughout};
use nix::sys::signal::Signal;

struct Cluster {
    // Dropped in this order: a node ends only after the processes in it.
    ping: Ping,
    daemons: Vec<Flanneld>,
    lab: Lab,
    /// The nodes and their subnets.
    before: BTreeSet<(String, String)>,
    /// The peer that was made up last.
    peer: u8,
}

impl Cluster {
    /// Two daemons with leases of `ttl` seconds, and a ping from pod to pod.
    fn start(lab: Lab, ttl: &str, with: impl Fn(Options) -> Options) -> Result<Self> {
        let start = |number| {
            let options = with(lab.options(number)).flag("subnet-lease-ttl", ttl);
            Flanneld::start(lab.node(number)?, &options)
        };
        let mut daemons = vec![start(1)?, start(2)?];
        for daemon in &mut daemons {
            daemon.wait_ready()?;
        }
        lab.wait_converged(&daemons)?;
        let (from, to) = (Pod::attach(lab.node(1)?, "pod")?, Pod::attach(lab.node(2)?, "pod")?);
        let ping = Ping::start(&from, to.address(), "0.002")?;
        let mut cluster = Self { ping, daemons, lab, before: BTreeSet::new(), peer: 200 };
        cluster.before = cluster.held()?;
        Ok(cluster)
    }

    /// The nodes that have a lease, and their subnets.
    fn held(&self) -> Result<BTreeSet<(String, String)>> {
        let own = [Lab::public_ip(1), Lab::public_ip(2)];
        let leases = self.lab.leases()?.into_iter().filter(|lease| own.contains(&lease.public_ip));
        Ok(leases.map(|lease| (lease.public_ip.to_string(), lease.subnet)).collect())
    }

    /// The key and value of a peer nobody has heard of.
    fn new_peer(&mut self) -> (String, String) {
        self.peer += 1;
        let number = self.peer;
        let value = lease::value(&format!("10.8.0.{number}"), &format!("02:00:00:00:00:{number:02x}"));
        (format!("{PREFIX}/subnets/10.200.{number}.0-24"), value)
    }

    /// `harm` befalls etcd, and `undo` ends it. In between pods reach each other and the kernel stays as it is. Afterwards a new
    /// peer gets into the kernels, and both nodes have the leases they had.
    fn fault(
        &mut self,
        fault: &str,
        harm: impl FnOnce(&mut Self) -> Result<()>,
        undo: impl FnOnce(&mut Lab) -> Result<()>,
    ) -> Result<()> {
        let recorder = Recorder::start(self.lab.node(1)?)?;
        harm(self)?;
        self.ping.wait_answers(300)?;
        let (changes, lost) = (recorder.changes(DEVICE)?, self.ping.report().lost());
        ensure!(changes.is_empty(), "{fault}: the kernel was changed: {changes:#?}");
        ensure!(lost == 0, "{fault}: {lost} packets were lost");
        undo(&mut self.lab)?;
        self.lab.etcd().wait_healthy()?;
        let (key, value) = self.new_peer();
        let (daemon, mut is_put) = (&self.daemons[0], false);
        let whole = || {
            if !is_put {
                self.lab.etcd().put(&key, &value)?;
                is_put = true;
            }
            self.lab.ensure_node_converged(daemon)?;
            let now = self.held()?;
            ensure!(now == self.before, "{now:?} instead of {:?}", self.before);
            Ok(())
        };
        let scene = Scene::new(&self.lab, daemon).with_traffic(&self.ping);
        scene.fault(fault, Since::CauseGone, |_| Ok(()), whole)?;
        self.lab.wait_converged(&self.daemons)
    }

    fn ensure_healthy(&self) -> Result<()> {
        let (status, body) = self.daemons[0].http("/healthz")?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    }

    /// How often node 1 has listed the leases again.
    fn lists(&self) -> usize {
        self.daemons[0].process().log().matches("leases listed again").count()
    }
}

fn kill(lab: &mut Lab, members: impl IntoIterator<Item = usize>) -> Result<()> {
    members.into_iter().try_for_each(|member| lab.etcd_mut().kill(member))
}

fn launch(lab: &mut Lab, members: impl IntoIterator<Item = usize>) -> Result<()> {
    members.into_iter().try_for_each(|member| lab.etcd_mut().launch(member))
}

/// Stops all members for most of the time, seven parts in eight.
fn slow_down(lab: &mut Lab) -> Result<()> {
    for _ in 0..5 {
        for (signal, time) in [(Signal::SIGSTOP, 700), (Signal::SIGCONT, 100)] {
            (0..3).try_for_each(|member| lab.etcd_mut().signal(member, signal))?;
            std::thread::sleep(Duration::from_millis(time));
        }
    }
    Ok(())
}

/// Of three leases one is deleted, one changed and one new, and no history tells of it.
fn compacted_meanwhile(cluster: &mut Cluster) -> Result<()> {
    let [(gone, first), (moved, second), (key, value)] = [(); 3].map(|()| cluster.new_peer());
    cluster.lab.etcd().put(&gone, &first)?;
    cluster.lab.etcd().put(&moved, &second)?;
    cluster.lab.wait_converged(&cluster.daemons)?;
    let compacted = |cluster: &mut Cluster| {
        cluster.lab.etcd().keep_clients_out()?;
        // What etcd has sent already would be delivered late.
        cluster.lab.nodes().iter().try_for_each(break_connections)?;
        cluster.lab.etcd().delete(&gone)?;
        cluster.lab.etcd().put(&moved, &second.replace("02:00:", "02:01:"))?;
        cluster.lab.etcd().put(&key, &value)?;
        cluster.lab.etcd().compact()
    };
    let lists = cluster.lists();
    cluster.fault("etcd: cut off, and compacted meanwhile", compacted, |lab| lab.etcd().let_clients_in())?;
    ensure!(cluster.lists() > lists, "the leases were not listed again: the history was whole");
    Ok(())
}

#[test]
fn outages_of_a_cluster_of_three_touch_no_kernel() -> Result<()> {
    let etcd_arguments = vec!["--quota-backend-bytes=2000000".to_owned()];
    let lab = Lab::start(&Spec { nodes: 2, etcd_members: 3, etcd_arguments, ..Spec::default() })?;
    let mut cluster = Cluster::start(lab, "86400", |options| options)?;
    let nothing = |_: &mut Lab| Ok(());

    let leader = eventually(CONVERGENCE, "a leader", || cluster.lab.etcd().leader())?;
    cluster.fault("etcd: leader killed", |cluster| kill(&mut cluster.lab, [leader]), nothing)?;
    launch(&mut cluster.lab, [leader])?;
    cluster.lab.etcd().wait_healthy()?;

    let used = connections(cluster.lab.node(1)?)?;
    let used = (0..3).find(|member| used.contains(&format!("10.8.0.10{}:2379", member + 1)));
    let used = used.unwrap();
    let dead = "etcd: the member in use killed, two of three left";
    cluster.fault(dead, |cluster| kill(&mut cluster.lab, [used]), nothing)?;
    launch(&mut cluster.lab, [used])?;
    cluster.lab.etcd().wait_healthy()?;

    let stop = |cluster: &mut Cluster| (0..3).try_for_each(|member| cluster.lab.etcd_mut().stop(member));
    cluster.fault("etcd: all members stopped and started again", stop, |lab| launch(lab, 0..3))?;

    let slow = |cluster: &mut Cluster| {
        break_connections(cluster.lab.node(1)?)?;
        slow_down(&mut cluster.lab)
    };
    cluster.fault("etcd: connections broken, and slow, 0.7 of 0.8 s", slow, nothing)?;

    let full = |cluster: &mut Cluster| cluster.lab.etcd().fill();
    cluster.fault("etcd: NOSPACE", full, |lab| lab.etcd().make_room())?;

    let cut = |cluster: &mut Cluster| {
        cluster.lab.etcd().keep_clients_out()?;
        let (key, value) = cluster.new_peer();
        cluster.lab.etcd().put(&key, &value)
    };
    cluster.fault("etcd: cut off, and a lease more meanwhile", cut, |lab| lab.etcd().let_clients_in())?;

    let half_open = |cluster: &mut Cluster| {
        cluster.lab.etcd().keep_clients_out()?;
        cluster.lab.etcd().forget_clients()
    };
    // No renewal finds it within the day.
    let found = "etcd: connections half-open, and nothing is sent";
    cluster.fault(found, half_open, |lab| lab.etcd().let_clients_in())?;

    compacted_meanwhile(&mut cluster)?;
    let report = cluster.ping.finish()?;
    ensure!(report.lost() == 0, "{} packets were lost", report.lost());
    Ok(())
}

/// etcd with TLS, users, and tokens that run out two seconds after the login, used or not.
fn lab_with_short_tokens() -> Result<Lab> {
    const SECRET: &str = "/etc/etcd/token-secret";
    let token = format!("--auth-token=jwt,sign-method=HS256,priv-key={SECRET},ttl=2s");
    let etcd_arguments = vec![token, "--bcrypt-cost=4".to_owned()];
    let spec = Spec { nodes: 2, etcd_tls: true, etcd_arguments, ..Spec::default() };
    let mut lab = Lab::without_etcd(&spec)?;
    lab.etcd().node(0)?.write(SECRET, "any secret of the server")?;
    lab.etcd_mut().start()?;
    lab.etcd().put(&format!("{PREFIX}/config"), &spec.network_config)?;
    lab.etcd_mut().enable_login("root", "hunter2")?;
    Ok(lab)
}

#[expect(clippy::disallowed_methods, reason = "certificates expire by the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn certificate_expires_and_is_replaced(cluster: &mut Cluster) -> Result<()> {
    let refuses = "the server refuses our certificate";
    let certificate_expires = |cluster: &mut Cluster| {
        let (daemon, end) = (&cluster.daemons[0], wall_clock() + Duration::from_secs(10));
        cluster.lab.authority()?.equip_client_until(daemon.node(), end)?;
        break_connections(daemon.node())?;
        eventually(Duration::from_secs(30), "the certificate expires", || {
            ensure!(wall_clock() > end + Duration::from_secs(1), "not yet");
            cluster.ensure_healthy()
        })?;
        // etcd looks at it only when a connection begins.
        ensure!(!daemon.process().log().contains(refuses), "it was never accepted");
        ensure!(!connections(daemon.node())?.is_empty(), "there is no connection to break");
        break_connections(daemon.node())?;
        cluster.lab.eventually(daemon, "the cause is named", || {
            ensure!(daemon.process().log().contains(refuses), "not named");
            Ok(())
        })
    };
    let renewed = |lab: &mut Lab| lab.authority()?.equip_client(lab.node(1)?);
    cluster.fault("etcd: client certificate expired, and replaced", certificate_expires, renewed)
}

#[test]
fn a_login_a_certificate_and_a_lease_that_expire_touch_no_kernel() -> Result<()> {
    let login = |options: Options| options.flag("etcd-username", "root").flag("etcd-password", "hunter2");
    let mut cluster = Cluster::start(lab_with_short_tokens()?, "10", login)?;
    let nothing = |_: &mut Lab| Ok(());

    let token_runs_out = |cluster: &mut Cluster| {
        throughout(Duration::from_millis(2500), "live while the token runs out", || {
            cluster.ensure_healthy()
        })?;
        break_connections(cluster.lab.node(1)?)
    };
    let refused = |cluster: &Cluster| -> Result<usize> {
        let log = std::fs::read_to_string(cluster.lab.etcd().node(0)?.folder().join("etcd.log"))?;
        Ok(log.matches("Token is expired").count())
    };
    let before = refused(&cluster)?;
    cluster.fault("etcd: connections broken, and the token has run out", token_runs_out, nothing)?;
    ensure!(refused(&cluster)? > before, "etcd has refused no token");

    certificate_expires_and_is_replaced(&mut cluster)?;

    let beyond_the_lease = |cluster: &mut Cluster| {
        cluster.lab.switch().cut(cluster.lab.etcd().node(0)?)?;
        eventually(Duration::from_secs(40), "the leases run out", || {
            let held = cluster.held()?;
            ensure!(held.is_empty(), "{held:?}");
            Ok(())
        })
    };
    let mend = |lab: &mut Lab| lab.switch().mend(lab.etcd().node(0)?);
    cluster.fault("etcd: cut off beyond the lease", beyond_the_lease, mend)
}
