//! A kernel in memory for tests: holds a device and entries, answers like the real one, and can be told to fail.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Change, Kernel, KernelError, Scope};
use crate::model::device::DeviceStep;
use crate::model::host::{Host, RouteLookup};
use crate::model::state::{
    EntryKey, FdbTarget, Observed, ObservedVtep, ObservedVxlan, Operation, RouteDevice, Vtep,
};

/// State and orders of the fake.
#[derive(Debug, Default)]
pub(crate) struct FakeKernel {
    /// What the host has.
    pub(crate) host: Host,
    /// What it holds for us.
    pub(crate) state: Observed,
    /// Everything that was asked of it.
    pub(crate) operations: Vec<Operation>,
    /// Steps on the device.
    pub(crate) steps: Vec<DeviceStep>,
    /// Entries that cannot be changed.
    pub(crate) refused: BTreeSet<EntryKey>,
    /// The device cannot be changed.
    pub(crate) device_refused: bool,
    /// The interface below cannot carry what is asked for.
    pub(crate) mtu_refused: bool,
    /// Public IPs on the same link.
    pub(crate) on_link: BTreeSet<Ipv4Addr>,
    /// How often it was dumped.
    pub(crate) dumps: usize,
    /// So many neighbours are deleted by somebody else as soon as they are there.
    pub(crate) undoing: usize,
    /// So many times the device is deleted by somebody else as soon as it is up.
    pub(crate) vanishing: usize,
    /// Queued notifications.
    pub(crate) queue: Vec<Change>,
}

fn refusal(what: &dyn std::fmt::Debug) -> KernelError {
    KernelError { doing: format!("{what:?}"), reason: "refused by the test".to_owned(), errno: 1 }
}

impl FakeKernel {
    /// Somebody deletes our device; what stood on it goes in silence.
    pub(crate) fn delete_device(&mut self) {
        self.state.vtep = None;
        self.state.entries.neighbors.clear();
        self.state.entries.fdb.clear();
        self.state.entries.routes.retain(|route| route.device != RouteDevice::Vtep);
        self.queue.push(Change::Device);
    }

    /// Somebody takes our device down (`ip link set flannel.1 down`); the routes through it go in silence.
    pub(crate) fn take_down(&mut self) {
        self.state.vtep.iter_mut().for_each(|device| device.up = false);
        self.state.entries.routes.retain(|route| route.device != RouteDevice::Vtep);
        self.queue.push(Change::Device);
    }

    /// Too much happens at once: what was not read yet is lost.
    pub(crate) fn overrun(&mut self) {
        self.queue = vec![Change::Lost];
    }

    /// Whether the operation needs a device that is not there, or one that is up.
    fn lacks_device(&self, operation: &Operation) -> bool {
        match (operation, &self.state.vtep) {
            (Operation::PutRoute(route), device) => {
                route.device == RouteDevice::Vtep && !device.as_ref().is_some_and(|device| device.up)
            }
            (Operation::PutFdb(..) | Operation::PutNeighbor(..), device) => device.is_none(),
            _ => false,
        }
    }

    /// Somebody else carries out an operation.
    pub(crate) fn interfere(&mut self, operation: &Operation) {
        self.state.entries.apply(operation);
        self.queue.push(echo(operation));
    }

    fn made(vtep: &Vtep) -> ObservedVtep {
        ObservedVtep {
            vxlan: Some(ObservedVxlan {
                vni: vtep.vni.get(),
                parent: Some(vtep.parent.clone()),
                local: Some(vtep.local),
                group: false,
                port: vtep.port.unwrap_or(8472),
                learning: vtep.learning,
                l2miss: false,
                gbp: vtep.gbp,
            }),
            mac: vtep.mac,
            mtu: vtep.mtu.get(),
            up: false,
            addresses: Vec::new(),
            tx_checksum: Some(true),
        }
    }

    fn carry_out(&mut self, step: &DeviceStep) {
        match (step, &mut self.state.vtep) {
            (DeviceStep::Create(vtep), _) => self.state.vtep = Some(Self::made(vtep)),
            (DeviceStep::Delete, _) => self.delete_device(),
            (DeviceStep::SetMac(mac), Some(device)) => device.mac = *mac,
            (DeviceStep::SetMtu(mtu), Some(device)) => device.mtu = mtu.get(),
            (DeviceStep::SetUp, Some(device)) => device.up = true,
            (DeviceStep::SetTxChecksum(on), Some(device)) => device.tx_checksum = Some(*on),
            (DeviceStep::SetLearning(on), Some(device)) => {
                device.vxlan.iter_mut().for_each(|vxlan| vxlan.learning = *on);
            }
            (DeviceStep::AddAddress(ip), Some(device)) => device.addresses.push((*ip).into()),
            (DeviceStep::DeleteAddress(address), Some(device)) => {
                device.addresses.retain(|other| other != address);
            }
            (_, None) => {}
        }
    }
}

fn echo(operation: &Operation) -> Change {
    match *operation {
        Operation::PutFdb(mac, dst) => Change::Fdb(mac, Some(FdbTarget { dst, plain: true })),
        Operation::PutNeighbor(ip, mac) => Change::Neighbor(ip, Some(mac)),
        Operation::PutRoute(route) => Change::RouteAdded { route, replaced: true },
        Operation::DeleteRoute(route) => Change::RouteRemoved(route),
        Operation::DeleteNeighbor(ip, _) => Change::Neighbor(ip, None),
        Operation::DeleteFdb(mac, _) => Change::Fdb(mac, None),
    }
}

impl Kernel for FakeKernel {
    fn host(&mut self) -> Result<Host, KernelError> {
        Ok(self.host.clone())
    }

    fn route_to(&mut self, ip: Ipv4Addr) -> Result<RouteLookup, KernelError> {
        let gateway = (!self.on_link.contains(&ip)).then_some(Ipv4Addr::new(10, 8, 0, 254));
        let device = "wg0".parse().map_err(|_| refusal(&ip))?;
        Ok(RouteLookup { device, source: None, gateway })
    }

    fn watch(&mut self, _: &Scope) -> Result<(), KernelError> {
        Ok(())
    }

    fn device(&mut self, _: &Scope) -> Result<Option<ObservedVtep>, KernelError> {
        Ok(self.state.vtep.clone())
    }

    fn observe(&mut self, _: &Scope) -> Result<Observed, KernelError> {
        self.dumps += 1;
        Ok(self.state.clone())
    }

    fn step(&mut self, _: &Scope, step: &DeviceStep) -> Result<(), KernelError> {
        if self.device_refused {
            return Err(refusal(step));
        }
        if self.mtu_refused && matches!(step, DeviceStep::SetMtu(_)) {
            return Err(KernelError { errno: nix::libc::EINVAL, ..refusal(step) });
        }
        self.steps.push(step.clone());
        self.carry_out(step);
        self.queue.push(Change::Device);
        if let (DeviceStep::SetUp, 1..) = (step, self.vanishing) {
            self.vanishing -= 1;
            self.delete_device();
        }
        Ok(())
    }

    fn apply(&mut self, _: &Scope, operations: &[Operation]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::new();
        for operation in operations {
            self.operations.push(*operation);
            if self.refused.contains(&operation.key()) || self.lacks_device(operation) {
                results.push(Err(refusal(operation)));
                continue;
            }
            self.interfere(operation);
            if let (Operation::PutNeighbor(ip, mac), 1..) = (*operation, self.undoing) {
                self.undoing -= 1;
                self.interfere(&Operation::DeleteNeighbor(ip, mac));
            }
            results.push(Ok(()));
        }
        results
    }

    fn queued(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.queue)
    }

    fn author(&self) -> Option<u32> {
        None
    }

    fn changed(&mut self) -> impl Future<Output = Vec<Change>> {
        std::future::poll_fn(|_| {
            if self.queue.is_empty() {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(self.queued())
            }
        })
    }
}

/// A fake kernel that outlives the daemon that uses it, and can be reached from outside meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedKernel {
    kernel: Arc<Mutex<FakeKernel>>,
    disturbed: Arc<Notify>,
}

impl SharedKernel {
    /// To look at it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, FakeKernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else does something to it.
    pub(crate) fn disturb(&self, what: impl FnOnce(&mut FakeKernel)) {
        what(&mut self.lock());
        self.disturbed.notify_one();
    }
}

impl Kernel for SharedKernel {
    fn host(&mut self) -> Result<Host, KernelError> {
        self.lock().host()
    }

    fn route_to(&mut self, ip: Ipv4Addr) -> Result<RouteLookup, KernelError> {
        self.lock().route_to(ip)
    }

    /// A new socket: what happened before is not in it.
    fn watch(&mut self, scope: &Scope) -> Result<(), KernelError> {
        self.lock().queue.clear();
        self.lock().watch(scope)
    }

    fn device(&mut self, scope: &Scope) -> Result<Option<ObservedVtep>, KernelError> {
        self.lock().device(scope)
    }

    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        self.lock().observe(scope)
    }

    fn step(&mut self, scope: &Scope, step: &DeviceStep) -> Result<(), KernelError> {
        self.lock().step(scope, step)
    }

    fn apply(&mut self, scope: &Scope, operations: &[Operation]) -> Vec<Result<(), KernelError>> {
        self.lock().apply(scope, operations)
    }

    fn queued(&mut self) -> Vec<Change> {
        self.lock().queued()
    }

    fn author(&self) -> Option<u32> {
        None
    }

    async fn changed(&mut self) -> Vec<Change> {
        loop {
            let queued = self.lock().queued();
            if !queued.is_empty() {
                return queued;
            }
            self.disturbed.notified().await;
        }
    }
}
