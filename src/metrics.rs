//! Counters and histograms that change with every operation; [`page`] shows them.
//!
//! Written out instead of with prometheus-client 0.25: measured, that adds 87 kB to a release binary and 0.3 µs to each
//! labelled update (a lock and a hash look-up), where an update here is one atomic addition.

pub mod page;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::state::{EntryKey, Operation};

/// What an operation on the kernel is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    /// The VXLAN device itself: creation, address, MTU, link state.
    Device,
    /// Forwarding database entries.
    Fdb,
    /// Permanent neighbours.
    Neighbor,
    /// Routes.
    Route,
}

impl OperationKind {
    const ALL: [Self; 4] = [Self::Device, Self::Fdb, Self::Neighbor, Self::Route];

    fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Fdb => "fdb",
            Self::Neighbor => "neighbor",
            Self::Route => "route",
        }
    }
}

impl From<&Operation> for OperationKind {
    fn from(operation: &Operation) -> Self {
        match operation.key() {
            EntryKey::Fdb(_) => Self::Fdb,
            EntryKey::Neighbor(_) => Self::Neighbor,
            EntryKey::Routes(_) => Self::Route,
        }
    }
}

/// How many operations there were of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; OperationKind::ALL.len()]);

impl Counts {
    /// So many more of a kind.
    pub fn add(&mut self, kind: OperationKind, count: u64) {
        if let Some(counted) = self.0.get_mut(kind as usize) {
            *counted = counted.saturating_add(count);
        }
    }

    /// The kinds that there were.
    pub fn by_kind(self) -> impl Iterator<Item = (OperationKind, u64)> {
        OperationKind::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// All of them.
    #[must_use]
    pub fn sum(self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// What was found changed by somebody else and put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairKind {
    /// The VXLAN device.
    Device,
    /// A forwarding database entry.
    Fdb,
    /// A permanent neighbour.
    Neighbor,
    /// A route.
    Route,
    /// A firewall rule.
    Firewall,
    /// The lease's key in the store.
    Lease,
    /// `subnet.env`
    SubnetEnv,
}

impl RepairKind {
    const ALL: [Self; 7] =
        [Self::Device, Self::Fdb, Self::Neighbor, Self::Route, Self::Firewall, Self::Lease, Self::SubnetEnv];

    /// The value of the label `kind`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Fdb => "fdb",
            Self::Neighbor => "neighbor",
            Self::Route => "route",
            Self::Firewall => "firewall",
            Self::Lease => "lease",
            Self::SubnetEnv => "subnet_env",
        }
    }
}

/// How an operation ended.
const RESULTS: [&str; 2] = ["ok", "error"];

impl From<OperationKind> for RepairKind {
    fn from(kind: OperationKind) -> Self {
        match kind {
            OperationKind::Device => Self::Device,
            OperationKind::Fdb => Self::Fdb,
            OperationKind::Neighbor => Self::Neighbor,
            OperationKind::Route => Self::Route,
        }
    }
}

/// Everything that is counted while the daemon works. Shared by reference; an update is one atomic addition.
#[derive(Debug, Default)]
pub struct Metrics {
    operations: [[AtomicU64; RESULTS.len()]; OperationKind::ALL.len()],
    repairs: [AtomicU64; RepairKind::ALL.len()],
    /// From a decision to the kernel's last answer.
    pub apply: Histogram,
    /// From the arrival of a change to the kernel's last answer.
    pub convergence: Histogram,
}

impl Metrics {
    /// Counts answers of the kernel.
    pub fn operations(&self, kind: OperationKind, succeeded: bool, count: u64) {
        add(self.operation_counter(kind, usize::from(!succeeded)), count);
    }

    /// `result` is a place in [`RESULTS`].
    fn operation_counter(&self, kind: OperationKind, result: usize) -> Option<&AtomicU64> {
        self.operations.get(kind as usize)?.get(result)
    }

    /// Counts things that were put right.
    pub fn repairs(&self, kind: RepairKind, count: u64) {
        add(self.repairs.get(kind as usize), count);
    }
}

fn add(counter: Option<&AtomicU64>, amount: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// Upper bounds of the buckets in seconds, from one entry on an idle machine to thousands on a busy one.
const BOUNDS: [f64; 11] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// How long something takes.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One counter per bound, and one for what lies above; not cumulative.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Counts one measurement.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        add(self.buckets.get(bucket), 1);
        add(Some(&self.nanoseconds), u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_where_their_counters_are() {
        for (index, kind) in OperationKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (index, kind) in RepairKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn a_measurement_falls_into_the_first_bucket_that_holds_it() {
        for (time, bucket) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(100), 0),
            (Duration::from_micros(101), 1),
            (Duration::from_secs(10), 10),
            (Duration::from_millis(10_001), 11),
            (Duration::MAX, 11),
        ] {
            let histogram = Histogram::default();
            histogram.observe(time);
            assert_eq!(histogram.buckets[bucket].load(Ordering::Relaxed), 1, "{time:?}");
        }
    }

    #[test]
    fn operations_are_counted_under_their_kind() {
        let mac = crate::model::MacAddr::new([2, 0, 0, 0, 0, 1]);
        let ip = std::net::Ipv4Addr::LOCALHOST;
        assert_eq!(OperationKind::from(&Operation::PutFdb(mac, ip)), OperationKind::Fdb);
        assert_eq!(OperationKind::from(&Operation::DeleteNeighbor(ip, mac)), OperationKind::Neighbor);
        let route = crate::model::state::Route::overlay("10.0.0.0/24".parse().unwrap());
        assert_eq!(OperationKind::from(&Operation::PutRoute(route)), OperationKind::Route);
    }
}
