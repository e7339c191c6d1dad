//! The kernel through netlink: keeps the sockets and which index our device has.
//!
//! Puts reading (`observe`), changing (`step`, `apply`) and noticing (`watch`) together; decides nothing about what the
//! kernel should hold.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use nix::libc;

use super::ahead::Ahead;
use super::observe::Links;
use super::refusal::Refusal;
use super::socket::Requests;
use super::watch::Watch;
use super::{Change, Kernel, KernelError, Scope, apply, observe, step};
use crate::model::device::DeviceStep;
use crate::model::host::{Host, RouteLookup};
use crate::model::state::{Observed, ObservedVtep, Operation};
use crate::model::{IfName, MacAddr};

/// Receive buffers in bytes (the kernel doubles them); tests make them tiny to lose messages on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveBuffers {
    /// For answers. One refusal takes about 900 bytes of it and a send can bring 900 of them.
    pub answers: usize,
    /// For notifications. One takes about as much, and a burst must fit until the daemon reads it.
    pub notifications: usize,
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self { answers: 1 << 20, notifications: 8 << 20 }
    }
}

/// How often a device may vanish while it is being read before that is an error.
const ATTEMPTS: usize = 3;

/// The Linux kernel of the network namespace in which the sockets were opened.
#[derive(Debug)]
pub struct LinuxKernel {
    pub(super) requests: Requests,
    pub(super) watch: Option<Watch>,
    /// Name and index of our device, as long as nothing said that they may have changed.
    vtep: Option<(IfName, u32)>,
    /// MACs whose FDB entry is not plain. Deleting by destination would miss them: that compares port and VNI, and leaves
    /// the other destinations of a MAC.
    pub(super) odd: BTreeSet<MacAddr>,
    ahead: Option<Ahead>,
    buffers: ReceiveBuffers,
}

impl LinuxKernel {
    /// Opens the socket for requests.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn open(buffers: ReceiveBuffers) -> Result<Self, KernelError> {
        let requests = Requests::open(buffers.answers).map_err(socket_failed)?;
        Ok(Self { requests, watch: None, vtep: None, odd: BTreeSet::new(), ahead: None, buffers })
    }

    /// The index of our device: remembered, or asked for. `None` when there is no such device.
    pub(super) fn vtep_index(&mut self, name: &IfName) -> Result<Option<u32>, Refusal> {
        if let Some((_, index)) = self.vtep.as_ref().filter(|(known, _)| known == name) {
            return Ok(Some(*index));
        }
        let index = observe::index_of(&mut self.requests, name)?;
        self.vtep = index.map(|index| (name.clone(), index));
        Ok(index)
    }

    /// The next use of the index asks for it again.
    pub(super) fn forget_index(&mut self) {
        self.vtep = None;
    }

    /// Looks up which links the names in `scope` mean now, for everything that goes by index.
    pub(super) fn follow(&mut self, scope: &Scope) -> Result<Links, KernelError> {
        self.forget_index();
        let links = Links::find(&mut self.requests, scope)?;
        let vtep = links.vtep.as_ref().map(|link| link.index);
        self.vtep = vtep.map(|index| (scope.vtep.clone(), index));
        if let Some(watch) = &mut self.watch {
            watch.follow(scope, vtep, links.parent);
        }
        Ok(links)
    }

    /// Reads what goes by index; again when the device goes while it is being read, since then nothing belongs to one moment.
    fn read<T>(
        &mut self,
        scope: &Scope,
        read: impl Fn(&mut Requests, &Scope, Links) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        for _ in 1..ATTEMPTS {
            let links = self.follow(scope)?;
            match read(&mut self.requests, scope, links) {
                Err(error) if error.errno == libc::ENODEV => {}
                result => return result,
            }
        }
        let links = self.follow(scope)?;
        read(&mut self.requests, scope, links)
    }

    /// What was read ahead, if nothing has changed since.
    fn seen_ahead(&mut self, scope: &Scope) -> Option<Observed> {
        let observed = self.ahead.take()?.finish(scope)?;
        let watch = self.watch.as_mut()?;
        watch.drain();
        (!watch.holds_changes()).then_some(observed)
    }

    /// Learns from what was noticed before it is handed on.
    fn heed(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Device | Change::Lost => self.forget_index(),
                Change::Fdb(mac, Some(target)) if !target.plain => {
                    self.odd.insert(*mac);
                }
                Change::Fdb(mac, None) => {
                    self.odd.remove(mac);
                }
                _ => {}
            }
        }
    }
}

fn socket_failed(error: io::Error) -> KernelError {
    Refusal::from(error).doing("open a netlink socket".to_owned())
}

impl Kernel for LinuxKernel {
    fn host(&mut self) -> Result<Host, KernelError> {
        observe::host(&mut self.requests)
    }

    fn route_to(&mut self, ip: Ipv4Addr) -> Result<RouteLookup, KernelError> {
        observe::route_to(&mut self.requests, ip)
    }

    fn watch(&mut self, scope: &Scope) -> Result<(), KernelError> {
        if self.watch.is_none() {
            let watch = Watch::open(self.buffers.notifications, scope, self.requests.port());
            self.watch = Some(watch.map_err(socket_failed)?);
        }
        self.follow(scope).map(drop)
    }

    fn device(&mut self, scope: &Scope) -> Result<Option<ObservedVtep>, KernelError> {
        self.read(scope, observe::device)
    }

    fn look_ahead(&mut self, scope: &Scope) -> Result<Option<ObservedVtep>, KernelError> {
        let found = self.device(scope)?;
        let index = self.vtep.as_ref().map(|(_, index)| *index);
        self.ahead = Ahead::begin(scope, found.clone(), index, self.buffers.answers);
        Ok(found)
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        let observed = match self.seen_ahead(scope) {
            Some(observed) => observed,
            None => self.read(scope, observe::observe)?,
        };
        let odd = observed.entries.fdb.iter().filter(|(_, target)| !target.plain);
        self.odd = odd.map(|(mac, _)| *mac).collect();
        Ok(observed)
    }

    fn step(&mut self, scope: &Scope, step: &DeviceStep) -> Result<(), KernelError> {
        self.ahead = None;
        if matches!(step, DeviceStep::Create(_) | DeviceStep::Delete) {
            self.forget_index();
        }
        step::carry_out(self, scope, step)
    }

    fn apply(&mut self, scope: &Scope, operations: &[Operation]) -> Vec<Result<(), KernelError>> {
        // We are not notified of our own changes.
        self.ahead = None;
        apply::apply(self, scope, operations)
    }

    fn queued(&mut self) -> Vec<Change> {
        let changes = self.watch.as_mut().map(Watch::queued).unwrap_or_default();
        self.heed(&changes);
        changes
    }

    fn author(&self) -> Option<u32> {
        self.watch.as_ref()?.author()
    }

    async fn changed(&mut self) -> Vec<Change> {
        loop {
            let Some(watch) = &mut self.watch else { return std::future::pending().await };
            // Not asked for what cannot be there: that would be a system call each time the daemon's loop turns.
            if !watch.holds_changes() {
                watch.readable().await;
            }
            let changes = self.queued();
            if !changes.is_empty() {
                return changes;
            }
        }
    }
}
