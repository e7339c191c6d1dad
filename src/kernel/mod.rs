//! The kernel's side: observe, apply, watch. The only place that knows netlink and interface indexes.
//!
//! [`LinuxKernel`] speaks rtnetlink with the network namespace it was opened in. From the outside in: `observe`, `step`,
//! `apply` and `watch` do what the trait says; `wire` turns requests into bytes and `parse` bytes into values; `socket`
//! sends, receives and matches answers; `message` and `refusal` know the outer shape of a message and of a failure. `ahead` is an
//! `observe` that begins before anybody waits for it.

use std::future::Future;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::model::device::DeviceStep;
use crate::model::host::{Host, RouteLookup};
use crate::model::state::{EntryKey, FdbTarget, Observed, ObservedVtep, Operation, Route};
use crate::model::{IfName, MacAddr};

mod ahead;
mod apply;
mod ethtool;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod fake;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/bodies/netlink.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub(crate) mod fuzz;
mod linux;
mod message;
mod observe;
mod parse;
#[cfg(test)]
mod recorded;
mod refusal;
mod socket;
mod step;
mod watch;
mod wire;

pub use apply::{command as command_of, encoded, route_in_words};
pub use linux::{LinuxKernel, ReceiveBuffers};
pub use step::command as command_of_step;

/// What somebody (perhaps we ourselves) changed in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A permanent neighbour on our device is now this, or gone (also when it stopped being permanent).
    Neighbor(Ipv4Addr, Option<MacAddr>),
    /// An FDB entry of our device is now this, or gone.
    Fdb(MacAddr, Option<FdbTarget>),
    /// A main-table route into the overlay network was added (`replaced`: it took the place of the one in its slot).
    RouteAdded {
        /// The route.
        route: Route,
        /// `NLM_F_REPLACE` was set.
        replaced: bool,
    },
    /// A main-table route into the overlay network is gone.
    RouteRemoved(Route),
    /// Our device itself changed: link state, MAC, MTU, address, existence. Observe again.
    Device,
    /// The external interface changed, or what its choice depends on: an IPv4 address of any link but ours, a default route. Also
    /// that any link went away, which may have been in our device's way. Look at the host again.
    Underlay,
    /// Notifications were lost (`ENOBUFS`). Observe everything again.
    Lost,
}

impl Change {
    /// Which entry it concerns; `None` when more than entries changed.
    #[must_use]
    pub fn key(&self) -> Option<EntryKey> {
        match self {
            Self::Neighbor(ip, _) => Some(EntryKey::Neighbor(*ip)),
            Self::Fdb(mac, _) => Some(EntryKey::Fdb(*mac)),
            Self::RouteAdded { route, .. } | Self::RouteRemoved(route) => Some(EntryKey::Routes(route.dst)),
            Self::Device | Self::Underlay | Self::Lost => None,
        }
    }
}

/// A kernel request that failed: what, on which object, and the kernel's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct KernelError {
    /// The request, as the `ip` or `bridge` command that would do the same.
    pub doing: String,
    /// The errno in words, the kernel's extended message, and a cure where one is known.
    pub reason: String,
    /// The errno, positive; 0 when the failure was not an answer of the kernel.
    pub errno: i32,
}

impl KernelError {
    /// The kernel cannot do that with this object, now or later (EINVAL).
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.errno == nix::libc::EINVAL
    }
}

/// What to watch and observe: our device, the interface below it and the network whose routes matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `flannel.VNI`.
    pub vtep: IfName,
    /// The external interface.
    pub parent: IfName,
    /// The overlay network.
    pub network: Ipv4Network,
}

/// The kernel as the daemon uses it.
///
/// Requests are answered synchronously by the kernel (microseconds each), so only waiting is async.
pub trait Kernel {
    /// Links, addresses and default routes (`ip addr`, `ip route show default`).
    ///
    /// # Errors
    /// When a dump fails.
    fn host(&mut self) -> Result<Host, KernelError>;

    /// How the kernel would reach `ip` (`ip route get IP`).
    ///
    /// # Errors
    /// When it would not.
    fn route_to(&mut self, ip: Ipv4Addr) -> Result<RouteLookup, KernelError>;

    /// Starts delivering changes of what lies in `scope`; call it before the first `observe`.
    ///
    /// # Errors
    /// When the socket cannot be opened or subscribed.
    fn watch(&mut self, scope: &Scope) -> Result<(), KernelError>;

    /// Our device as it is, or that there is none (`ip -d link show`, `ip -4 addr show`, `ethtool -k`).
    ///
    /// # Errors
    /// When it cannot be read.
    fn device(&mut self, scope: &Scope) -> Result<Option<ObservedVtep>, KernelError>;

    /// Our device, as [`device`](Kernel::device) has it. A kernel that supports it starts dumping the entries in parallel, and the
    /// next `observe` uses that dump if nothing has changed since; call it after `watch`, which tells.
    ///
    /// # Errors
    /// When the device cannot be read.
    fn look_ahead(&mut self, scope: &Scope) -> Result<Option<ObservedVtep>, KernelError> {
        self.device(scope)
    }

    /// Our device, and a dump of all entries.
    ///
    /// # Errors
    /// When a dump fails. Failing to read is never the same as reading nothing.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError>;

    /// Carries out one step on the device.
    ///
    /// # Errors
    /// With the kernel's words. Absent on delete and present on add are success.
    fn step(&mut self, scope: &Scope, step: &DeviceStep) -> Result<(), KernelError>;

    /// Carries out operations in order; the answer has one result per operation, in the same order.
    /// Absent on delete is success. A failing operation does not stop the others.
    fn apply(&mut self, scope: &Scope, operations: &[Operation]) -> Vec<Result<(), KernelError>>;

    /// Changes that are already queued, without waiting. After `apply` some of our own come back: the kernel does not say whose
    /// they are of FDB entries and deleted neighbours.
    fn queued(&mut self) -> Vec<Change>;

    /// Who sent the last change that was not ours, as a process id, where the kernel says so.
    fn author(&self) -> Option<u32>;

    /// Waits for changes, then returns all that are queued. Cancel-safe.
    fn changed(&mut self) -> impl Future<Output = Vec<Change>>;
}
