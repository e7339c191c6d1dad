//! The page `/metrics` in Prometheus' text format, and the table of everything on it.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{BOUNDS, Histogram, Metrics, OperationKind, RESULTS, RepairKind};
use crate::status::{Link, Status, ready};

/// One metric, as documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// Its labels; empty for none.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
}

/// Every metric, in the order of `/metrics`.
pub const METRICS: [Metric; 12] = [
    BUILD_INFO,
    READY,
    LEASE_AGE,
    LEASE_EXPIRY,
    PEERS,
    SKIPPED_KEYS,
    STORE_UP,
    WATCH_RESTARTS,
    KERNEL_OPERATIONS,
    REPAIRS,
    APPLY,
    CONVERGENCE,
];

const BUILD_INFO: Metric =
    gauge("flanneld_build_info", "version", "always 1; the label says which version runs");
const READY: Metric = gauge("flanneld_ready", "", "1 while /readyz answers 200, else 0");
const LEASE_AGE: Metric =
    gauge("flanneld_lease_age_seconds", "", "seconds since the own lease was taken or renewed");
const LEASE_EXPIRY: Metric =
    gauge("flanneld_lease_expiry_seconds", "", "seconds until the own lease ends; absent for a reservation");
const PEERS: Metric =
    gauge("flanneld_peers", "state", "other nodes that the kernel holds whole, or refused in part");
const SKIPPED_KEYS: Metric =
    gauge("flanneld_skipped_keys", "reason", "keys below PREFIX/subnets that are not used now");
const STORE_UP: Metric = gauge("flanneld_store_up", "", "1 while the store answers, else 0");
const WATCH_RESTARTS: Metric =
    counter("flanneld_watch_restarts_total", "", "how often the watch of the store had to be opened again");
const KERNEL_OPERATIONS: Metric =
    counter("flanneld_kernel_operations_total", "kind,result", "answers of the kernel to our requests");
const REPAIRS: Metric =
    counter("flanneld_repairs_total", "kind", "what somebody else had changed or removed and was put right");
const APPLY: Metric = histogram("flanneld_apply_seconds", "from a decision to the kernel's last answer");
const CONVERGENCE: Metric =
    histogram("flanneld_convergence_seconds", "from the arrival of a change to the kernel's last answer");

const fn gauge(name: &'static str, labels: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", labels, help }
}

const fn counter(name: &'static str, labels: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "counter", labels, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "histogram", labels: "", help }
}

/// The body of `/metrics`. Its media type is [`MEDIA_TYPE`].
#[must_use]
pub fn render(status: &Status, metrics: &Metrics, now: Duration) -> String {
    let mut page = Page::default();
    page.begin(BUILD_INFO).line(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.begin(READY).line(&[], u8::from(ready(status, now)));
    lease(&mut page, status, now);
    page.begin(PEERS);
    page.line(&[("state", "programmed")], status.peers.programmed);
    page.line(&[("state", "failed")], status.peers.failed);
    page.begin(SKIPPED_KEYS);
    for (reason, count) in &status.skipped {
        page.line(&[("reason", reason)], count);
    }
    page.begin(STORE_UP).line(&[], u8::from(matches!(status.store.link, Link::Up { .. })));
    page.begin(WATCH_RESTARTS).line(&[], status.store.watch_restarts);
    counters(&mut page, metrics);
    page.begin(APPLY).histogram(&metrics.apply);
    page.begin(CONVERGENCE).histogram(&metrics.convergence);
    page.text
}

/// The media type of the text format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An end in the past is a negative number.
fn lease(page: &mut Page, status: &Status, now: Duration) {
    let lease = status.lease.as_ref();
    page.begin(LEASE_AGE);
    if let Some(lease) = lease {
        page.line(&[], now.saturating_sub(lease.renewed).as_secs_f64());
    }
    page.begin(LEASE_EXPIRY);
    if let Some(expires) = lease.and_then(|lease| lease.expires) {
        page.line(&[], expires.as_secs_f64() - now.as_secs_f64());
    }
}

fn counters(page: &mut Page, metrics: &Metrics) {
    page.begin(KERNEL_OPERATIONS);
    for kind in OperationKind::ALL {
        for (index, result) in RESULTS.into_iter().enumerate() {
            let count = loaded(metrics.operation_counter(kind, index));
            page.line(&[("kind", kind.label()), ("result", result)], count);
        }
    }
    page.begin(REPAIRS);
    for kind in RepairKind::ALL {
        page.line(&[("kind", kind.label())], loaded(metrics.repairs.get(kind as usize)));
    }
}

fn loaded(counter: Option<&AtomicU64>) -> u64 {
    counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
}

/// The text so far, and whose lines come now.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn begin(&mut self, metric: Metric) -> &mut Self {
        self.name = metric.name;
        let _ = writeln!(self.text, "# HELP {0} {1}\n# TYPE {0} {2}", metric.name, metric.help, metric.kind);
        self
    }

    fn line(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.suffixed("", labels, value);
    }

    fn histogram(&mut self, histogram: &Histogram) {
        let mut total = 0;
        for (index, bucket) in histogram.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS.get(index).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            self.suffixed("_bucket", &[("le", &bound)], total);
        }
        let sum = Duration::from_nanos(histogram.nanoseconds.load(Ordering::Relaxed));
        self.suffixed("_sum", &[], sum.as_secs_f64());
        self.suffixed("_count", &[], total);
    }

    /// `Debug` escapes quotes, backslashes and newlines as the format wants it; label values are our own ASCII words.
    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::MacAddr;
    use crate::status::{OwnLease, Peers, Phase, Store};

    fn status() -> Status {
        let seconds = Duration::from_secs;
        Status {
            phase: Phase::Running,
            lease: Some(OwnLease {
                subnet: "10.200.88.0/24".parse().unwrap(),
                public_ip: Ipv4Addr::new(10, 8, 0, 111),
                mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
                renewed: seconds(100),
                expires: Some(seconds(86_500)),
            }),
            peers: Peers { programmed: 3, failed: 1 },
            skipped: BTreeMap::from([("own subnet", 1), ("unreadable value", 2)]),
            store: Store { link: Link::Up { since: seconds(1) }, watch_restarts: 4, ..Store::default() },
            subnet_env_written: true,
            first_list_tried: true,
            ..Status::default()
        }
    }

    #[test]
    fn the_page_is_this_text() {
        let metrics = Metrics::default();
        metrics.operations(OperationKind::Fdb, true, 1);
        metrics.operations(OperationKind::Route, false, 1);
        metrics.repairs(RepairKind::SubnetEnv, 1);
        metrics.apply.observe(Duration::from_micros(250));
        metrics.apply.observe(Duration::from_secs(20));
        let page = render(&status(), &metrics, Duration::from_millis(1_100_500));
        assert_eq!(page, include_str!("golden.txt").replace("VERSION", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn without_a_lease_its_times_are_absent_and_an_expired_one_is_negative() {
        let metrics = Metrics::default();
        let bare = render(&Status::default(), &metrics, Duration::ZERO);
        assert!(!bare.contains("\nflanneld_lease_"), "{bare}");
        assert!(bare.contains("\nflanneld_ready 0\n") && bare.contains("\nflanneld_store_up 0\n"), "{bare}");
        let late = render(&status(), &metrics, Duration::from_secs(86_510));
        assert!(late.contains("\nflanneld_lease_expiry_seconds -10\n"), "{late}");
    }

    #[test]
    fn the_table_is_the_page() {
        let page = render(&status(), &Metrics::default(), Duration::ZERO);
        let heads: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let table: Vec<_> = METRICS.iter().map(|metric| format!("{} {}", metric.name, metric.kind)).collect();
        assert_eq!(heads, table);
        for metric in METRICS {
            let own = |line: &&str| line.starts_with(metric.name);
            let labels = page.lines().find(own).and_then(|line| Some(line.split_once('{')?.1)).unwrap_or("");
            let names: Vec<_> =
                labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
            let names = names.into_iter().filter(|name| *name != "le").collect::<Vec<_>>().join(",");
            assert_eq!(names, metric.labels, "{}", metric.name);
        }
    }
}
