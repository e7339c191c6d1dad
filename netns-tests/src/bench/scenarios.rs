//! What is measured. `start`, `tls` and `burst` run every subject in turn, again and again, so that a slow minute of the machine hits
//! all of them; the others take one subject after the other. What needs a floor measures it beside each subject.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::bed::{Bed, PATIENCE, Subject};
use super::etcd::{Peer, own_cpu};
use super::kernel::{self, Metrics, Step};
use super::report::Results;
use super::sample::{Sample, ms};
use crate::etcd::Api;
use crate::flanneld::Flanneld;
use crate::lab::DEVICE;
use crate::process::{Footprint, processor_time};

/// The column of what the kernel needs for the same entries, prepared beforehand.
pub(super) const KERNEL_FLOOR: &str = "floor: kernel";
/// The column of what etcd needs for one range, or to deliver one event.
pub(super) const ETCD_FLOOR: &str = "floor: etcd";

/// The column of a process that asks etcd the same through the same libraries and pushes messages prepared beforehand, but decides
/// nothing (`benches/bare`).
pub(super) const BARE_FLOOR: &str = "floor: etcd-client";

/// A change that is made to one lease after the other.
const STEPS: [Step; 3] = [Step::Added, Step::Changed, Step::Removed];
/// How often each step is made.
const CHANGES: u32 = 100;
/// So often all of them are made and measured, at most.
const CHANGE_RUNS: u32 = 5;
/// A change that the kernel does not have by then is missed.
const MISSED: Duration = Duration::from_secs(10);
/// Writes a second that change nothing.
const RENEWALS: u32 = 200;
const RENEWAL_SECONDS: u32 = 5;
/// How often a thread is woken beside the idle daemon.
const WAKE_UPS: u32 = 20;

/// Whoever deletes the device more often in a row fights with our daemon, which then waits.
const REPAIRS: u32 = 10;
/// A daemon that has not put its routes back by then does not do it.
const NEVER: Duration = Duration::from_secs(30);

/// Where results go, and how often things are done.
pub(super) struct Bench<'a> {
    pub(super) subjects: &'a [Subject],
    pub(super) results: &'a mut Results,
    pub(super) runs: u32,
    /// How long an idle daemon is looked at.
    pub(super) idle: Duration,
    /// The program behind [`BARE_FLOOR`], and where its messages are written.
    pub(super) bare: &'a Path,
    pub(super) messages: &'a Path,
}

impl Bench<'_> {
    fn beds(&self, peers: u32) -> Result<Vec<Bed>> {
        self.subjects.iter().map(|subject| Bed::new(subject, peers)).collect()
    }

    fn add(&mut self, name: &str, unit: &'static str, bed: &Bed, value: f64) {
        self.results.add(name, unit, &bed.subject.name, value);
    }

    /// The binaries.
    pub(super) fn size(&mut self) -> Result<()> {
        for subject in self.subjects {
            self.results.add("binary", "MB", &subject.name, super::bed::megabytes(&subject.program)?);
        }
        Ok(())
    }

    /// exec → READY and exec → everything programmed, on a fresh node, and what is in memory then.
    pub(super) fn start(&mut self, peers: u32) -> Result<()> {
        let mut beds = self.beds(peers)?;
        let label = |what: &str| format!("{what}, {} leases", peers + 1);
        let runs = if peers > super::MANY { self.runs.min(super::LONG_RUNS) } else { self.runs };
        for _ in 0..runs {
            for bed in &mut beds {
                let started = bed.start()?;
                let footprint = Footprint::of(started.daemon.process().pid())?;
                self.add(&label("exec → READY"), "ms", bed, ms(started.ready));
                if peers > 0 {
                    self.add(&label("exec → all routes"), "ms", bed, ms(started.complete));
                }
                self.add(&label("CPU of the start"), "ms", bed, started.cpu);
                self.add(&label("etcd's CPU of the start"), "ms", bed, started.etcd_cpu);
                self.add(&label("anonymous memory"), "MiB", bed, mib(footprint.anonymous_kib));
                self.add(&label("resident memory"), "MiB", bed, mib(footprint.resident_kib));
                bed.forget(started.daemon)?;
                if peers == 0 && bed.subject.api == Api::V3 {
                    kernel::write_batches(self.messages, &[kernel::making_of_device(bed.lab.node(1)?)?])?;
                    let started = bed.start_bare(self.bare, self.messages)?;
                    self.results.add(&label("exec → READY"), "ms", BARE_FLOOR, ms(started.ready));
                    self.results.add(&label("CPU of the start"), "ms", BARE_FLOOR, started.cpu);
                    bed.forget(started.daemon)?;
                }
                if peers > 0 {
                    let floor = |metrics| kernel::floor(bed.lab.node(1)?, &bed.peers, metrics);
                    let (same, own) = (floor(Metrics::Same)?, floor(Metrics::Own)?);
                    self.results.add(&label("exec → all routes"), "ms", KERNEL_FLOOR, ms(same));
                    let name = label("the same, had each route a metric of its own");
                    self.results.add(&name, "ms", KERNEL_FLOOR, ms(own));
                }
                let range = ms(bed.client.time_range()?);
                self.results.add(&label("exec → READY"), "ms", ETCD_FLOOR, range);
            }
        }
        Ok(())
    }

    /// exec → READY with one lease and an etcd that wants TLS.
    pub(super) fn start_with_tls(&mut self) -> Result<()> {
        let beds = self.subjects.iter().map(Bed::with_tls);
        let mut beds = beds.collect::<Result<Vec<Bed>>>()?;
        for _ in 0..self.runs {
            for bed in &mut beds {
                let started = bed.start()?;
                self.add("exec → READY, 1 leases, TLS", "ms", bed, ms(started.ready));
                self.add("CPU of the start, 1 leases, TLS", "ms", bed, started.cpu);
                bed.forget(started.daemon)?;
                let answer = super::tls::time_first_answer(bed.lab.node(1)?, bed.lab.etcd().address(0)?)?;
                self.results.add("exec → READY, 1 leases, TLS", "ms", ETCD_FLOOR, ms(answer));
            }
        }
        Ok(())
    }

    /// A restart that finds everything right.
    pub(super) fn restart(&mut self, peers: u32) -> Result<()> {
        let label = |what: &str| format!("{what}, {} leases", peers + 1);
        for bed in &mut self.beds(peers)? {
            let mut daemon = bed.start()?.daemon;
            kernel::write_batches(self.messages, &[])?;
            for _ in 0..self.runs {
                daemon.stop(Signal::SIGTERM)?;
                if bed.subject.api == Api::V3 {
                    let bare = bed.start_bare(self.bare, self.messages)?;
                    self.results.add(&label("restart → READY"), "ms", BARE_FLOOR, ms(bare.ready));
                    self.results.add(&label("CPU of a restart"), "ms", BARE_FLOOR, bare.cpu);
                    bare.daemon.stop(Signal::SIGKILL)?;
                }
                let again = bed.start_awaiting(0)?;
                self.add(&label("restart → READY"), "ms", bed, ms(again.ready));
                self.add(&label("CPU of a restart"), "ms", bed, again.cpu);
                let written = bed.written_before_a_change()?;
                self.add(&label("entries written at a restart"), "", bed, count(written));
                daemon = again.daemon;
                let dump = kernel::time_dump(bed.lab.node(1)?)?;
                self.results.add(&label("restart → READY"), "ms", KERNEL_FLOOR, ms(dump));
                self.results.add(&label("restart → READY"), "ms", ETCD_FLOOR, ms(bed.client.time_range()?));
            }
        }
        Ok(())
    }

    /// One lease added, changed, removed: from the write to the kernel's entry, beside the arrival of the same event at a
    /// watch of our own.
    pub(super) fn changes(&mut self, peers: u32) -> Result<()> {
        let mut beds = self.beds(peers)?;
        for bed in &mut beds {
            bed.start()?.daemon.stop(Signal::SIGTERM)?;
            bed.monitor.take_precedence()?;
        }
        for _ in 0..self.runs.min(CHANGE_RUNS) {
            for mut bed in std::mem::take(&mut beds) {
                if self.changes_of(&mut bed, peers)? {
                    self.bare_changes(&mut bed, peers)?;
                    beds.push(bed);
                }
            }
        }
        Ok(())
    }

    /// Of the daemon, which finds everything as it left it. Whether it missed none.
    fn changes_of(&mut self, bed: &mut Bed, peers: u32) -> Result<bool> {
        let daemon = bed.start_awaiting(0)?.daemon;
        let before = processor_time(daemon.process().pid())?;
        let floor = if bed.subject.api == Api::V3 { Some(bed.client.watch()?) } else { None };
        let sent = match all_changes(bed, peers) {
            Err(error) if bed.subject.name != super::OURS => {
                println!("{error:#}; no figures of its changes from here on");
                return Ok(false);
            }
            sent => sent?,
        };
        let watched = floor.map(|floor| floor.finish_with(sent.len())).transpose()?;
        let cpu = processor_time(daemon.process().pid())?.saturating_sub(before);
        let cpu_of_a_change = format!("CPU a change, {peers} peers");
        self.add(&cpu_of_a_change, "ms", bed, ms(cpu) / count(sent.len()));
        if let Some(watched) = &watched {
            self.results.add(&cpu_of_a_change, "ms", ETCD_FLOOR, ms(watched.cpu) / count(sent.len()));
        }
        daemon.stop(Signal::SIGTERM)?;
        for step in STEPS {
            let name = format!("one lease {}, {peers} peers", word(step));
            self.quantiles(&name, &bed.subject.name, &until_seen(&sent, step));
            let Some(watched) = &watched else { continue };
            self.quantiles(
                &format!("{name}, after a watch has it"),
                &bed.subject.name,
                &after(&sent, step, &watched.arrivals),
            );
            let starts = sent.iter().zip(&watched.arrivals).filter(|((other, ..), _)| *other == step);
            let times: Sample = starts.map(|((_, start, _), at)| ms(*at - *start)).collect();
            self.quantiles(&name, ETCD_FLOOR, &times);
        }
        Ok(true)
    }

    /// The same changes, followed by a thread that pushes messages prepared beforehand as soon as it hears of them, which nobody can
    /// be quicker than; then by a process that does the same through the daemon's libraries.
    fn bare_changes(&mut self, bed: &mut Bed, peers: u32) -> Result<()> {
        if bed.subject.api != Api::V3 {
            return Ok(());
        }
        let further: Vec<Peer> = (peers..peers + CHANGES).map(Peer::new).collect();
        let prepared = kernel::Prepared::new(bed.lab.node(1)?, &further)?;
        prepared.write(self.messages)?;
        let follower = bed.client.watch_and(move |position| prepared.carry_out(position))?;
        // As beside the daemon: etcd tells two, and three share the cores.
        let watch = bed.client.watch()?;
        let sent = all_changes(bed, peers)?;
        let cpu = follower.finish_with(sent.len())?.cpu;
        self.bare_figures(KERNEL_FLOOR, peers, &sent, cpu, &watch.finish_with(sent.len())?.arrivals);
        let process = bed.start_bare(self.bare, self.messages)?.daemon;
        let before = processor_time(process.process().pid())?;
        let watch = bed.client.watch()?;
        let sent = all_changes(bed, peers)?;
        let cpu = processor_time(process.process().pid())?.saturating_sub(before);
        self.bare_figures(BARE_FLOOR, peers, &sent, cpu, &watch.finish_with(sent.len())?.arrivals);
        process.stop(Signal::SIGKILL).map(drop)
    }

    fn bare_figures(&mut self, column: &str, peers: u32, sent: &Sent, cpu: Duration, arrivals: &[Instant]) {
        self.results.add(&format!("CPU a change, {peers} peers"), "ms", column, ms(cpu) / count(sent.len()));
        for step in STEPS {
            let name = format!("one lease {}, {peers} peers", word(step));
            self.quantiles(&name, column, &until_seen(sent, step));
            let name = format!("{name}, after a watch has it");
            self.quantiles(&name, column, &after(sent, step, arrivals));
        }
    }

    fn quantiles(&mut self, name: &str, column: &str, times: &Sample) {
        for (label, share) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(value) = times.quantile(share) {
                self.results.add(&format!("{name}, {label}"), "ms", column, value);
            }
        }
    }

    /// Thousands of leases come and go at once: from the end of the writing to the last entry.
    pub(super) fn burst(&mut self, count: u32) -> Result<()> {
        let mut beds = self.beds(0)?;
        let peers = super::etcd::peers(count);
        for _ in 0..self.runs {
            for bed in &mut beds {
                let daemon = bed.start()?.daemon;
                for single in [false, true] {
                    let how = if single { "single writes" } else { "transactions" };
                    bed.monitor.reset();
                    let start = Instant::now();
                    write(bed, &peers, single, true)?;
                    let written = start.elapsed();
                    let last = bed.monitor.wait_added(peers.len(), PATIENCE)? - start;
                    let name = format!("{count} leases added in {how}");
                    self.add(&format!("{name}: after the last write"), "ms", bed, beyond(last, written));
                    self.results.add(&format!("{name}: writing"), "ms", ETCD_FLOOR, ms(written));
                    bed.monitor.reset();
                    let start = Instant::now();
                    write(bed, &peers, single, false)?;
                    let written = start.elapsed();
                    let last = bed.monitor.wait_removed(peers.len(), PATIENCE)? - start;
                    let name = format!("{count} leases deleted in {how}");
                    self.add(&format!("{name}: after the last write"), "ms", bed, beyond(last, written));
                }
                bed.forget(daemon)?;
            }
        }
        Ok(())
    }

    /// Writes that change nothing, as Go daemons renew their leases; then nothing at all.
    pub(super) fn quiet(&mut self, peers: u32) -> Result<()> {
        kernel::write_batches(self.messages, &[])?;
        for mut bed in self.beds(peers)? {
            let daemon = bed.start()?.daemon;
            settle(&bed, &daemon)?;
            let floor = if bed.subject.api == Api::V3 { Some(bed.client.watch()?) } else { None };
            let renewals = bed.cost_of(&daemon, |bed| renew(bed, peers))?;
            let name = |what: &str| format!("{RENEWALS} unchanged renewals a second: {what}, {peers} peers");
            let cpu_of_renewals = name("CPU a second");
            self.add(&cpu_of_renewals, "ms", &bed, renewals.cpu / renewals.seconds);
            if let Some(watched) = floor.map(super::etcd::WatchFloor::finish).transpose()? {
                let cpu = ms(watched.cpu) / renewals.seconds;
                self.results.add(&cpu_of_renewals, "ms", ETCD_FLOOR, cpu);
            }
            self.add(&name("entries written"), "", &bed, count(renewals.changes));
            settle(&bed, &daemon)?;
            let idle_time = self.idle;
            let woken = std::thread::spawn(move || wake_ups(idle_time));
            let idle = bed.cost_of(&daemon, |_| {
                std::thread::sleep(idle_time);
                Ok(())
            })?;
            let woken = woken.join().map_err(|_| anyhow::anyhow!("the thread that is woken panicked"))?;
            let name = |what: &str| format!("idle {} s: {what}, {peers} peers", idle_time.as_secs());
            self.add(&name("CPU"), "ms", &bed, idle.cpu);
            self.results.add(&name("CPU"), "ms", KERNEL_FLOOR, ms(woken));
            self.add(&name("context switches"), "", &bed, number(idle.context_switches));
            self.add(&name("processes started"), "", &bed, number(idle.started));
            if bed.subject.api == Api::V3 {
                daemon.stop(Signal::SIGTERM)?;
                let bare = bed.start_bare(self.bare, self.messages)?.daemon;
                settle(&bed, &bare)?;
                // As beside the daemon: etcd tells two.
                let watch = bed.client.watch()?;
                let cost = bed.cost_of(&bare, |bed| renew(bed, peers))?;
                watch.finish()?;
                self.results.add(&cpu_of_renewals, "ms", BARE_FLOOR, cost.cpu / cost.seconds);
                bare.stop(Signal::SIGKILL)?;
            }
        }
        Ok(())
    }

    /// Somebody deletes the device.
    pub(super) fn repair(&mut self, peers: u32) -> Result<()> {
        let name = format!("{DEVICE} deleted → all routes, {peers} peers");
        for bed in &mut self.beds(peers)? {
            let daemon = bed.start()?.daemon;
            for _ in 0..self.runs.min(REPAIRS) {
                // What goes with the device is announced too: only additions are waited for.
                bed.monitor.reset();
                bed.lab.node(1)?.run(&format!("ip link delete {DEVICE}"))?;
                let deleted = Instant::now();
                let Ok(whole) = bed.monitor.wait_added(bed.peers.len(), NEVER) else {
                    println!("{}: {name}: the routes did not come back within {NEVER:?}", bed.subject.name);
                    break;
                };
                self.add(&name, "ms", bed, ms(whole.saturating_duration_since(deleted)));
            }
            bed.forget(daemon)?;
            self.results.add(
                &name,
                "ms",
                KERNEL_FLOOR,
                ms(kernel::floor(bed.lab.node(1)?, &bed.peers, Metrics::Same)?),
            );
        }
        Ok(())
    }
}

/// Every change: what, when it was written, when the kernel had it.
type Sent = Vec<(Step, Instant, Instant)>;

fn all_changes(bed: &mut Bed, peers: u32) -> Result<Sent> {
    let mut sent = Vec::new();
    for number in peers..peers + CHANGES {
        for step in STEPS {
            let (start, seen) = one_change(bed, number, step)
                .with_context(|| format!("{} with {peers} peers, change {number}", bed.subject.name))?;
            sent.push((step, start, seen));
        }
    }
    Ok(sent)
}

fn until_seen(sent: &Sent, step: Step) -> Sample {
    let of_step = sent.iter().filter(|(other, ..)| *other == step);
    of_step.map(|(_, start, seen)| ms(*seen - *start)).collect()
}

/// From the arrival of each event at a watch to the kernel's entry, which may come first.
fn after(sent: &Sent, step: Step, arrivals: &[Instant]) -> Sample {
    let of_step = sent.iter().zip(arrivals).filter(|((other, ..), _)| *other == step);
    of_step.map(|((_, start, seen), arrival)| ms(*seen - *start) - ms(*arrival - *start)).collect()
}

fn one_change(bed: &mut Bed, number: u32, step: Step) -> Result<(Instant, Instant)> {
    let peer = Peer { number, generation: u8::from(step != Step::Added) };
    bed.monitor.reset();
    let start = Instant::now();
    match step {
        Step::Added | Step::Changed => bed.client.put(peer)?,
        Step::Removed => bed.client.delete(peer)?,
    }
    let seen = bed.monitor.wait_step(step, peer.subnet(), MISSED).context(word(step))?;
    Ok((start, seen))
}

fn word(step: Step) -> &'static str {
    match step {
        Step::Added => "added",
        Step::Changed => "changed",
        Step::Removed => "removed",
    }
}

/// What a thread takes of a CPU that a timer wakes now and then, and that does nothing.
fn wake_ups(span: Duration) -> Duration {
    let before = own_cpu();
    for _ in 0..WAKE_UPS {
        std::thread::sleep(span / WAKE_UPS);
    }
    own_cpu().saturating_sub(before)
}

/// Unchanged leases written one after the other, at a steady pace.
fn renew(bed: &mut Bed, peers: u32) -> Result<()> {
    let start = Instant::now();
    for number in 0..RENEWALS * RENEWAL_SECONDS {
        bed.client.put(Peer::new(number % peers))?;
        let due = start + Duration::from_secs(1) / RENEWALS * (number + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn write(bed: &mut Bed, peers: &[Peer], single: bool, add: bool) -> Result<()> {
    match (single, add) {
        (false, true) => bed.client.put_all(peers),
        (false, false) => bed.client.delete_all(peers),
        (true, true) => peers.iter().try_for_each(|peer| bed.client.put(*peer)),
        (true, false) => peers.iter().try_for_each(|peer| bed.client.delete(*peer)),
    }
}

/// What came after the writing; nothing if the kernel was whole before the last answer had arrived.
fn beyond(last: Duration, written: Duration) -> f64 {
    ms(last.saturating_sub(written))
}

/// Waits until the daemon has come to rest: a second without a context switch, or ten seconds.
fn settle(bed: &Bed, daemon: &Flanneld) -> Result<()> {
    let pid = daemon.process().pid();
    for _ in 0..10 {
        let before = Footprint::of(pid)?.context_switches;
        std::thread::sleep(Duration::from_secs(1));
        if Footprint::of(pid)?.context_switches == before {
            break;
        }
    }
    bed.monitor.reset();
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn number(number: u64) -> f64 {
    number as f64
}
