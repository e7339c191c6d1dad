//! Asks the kernel what the choice of the underlay needs to know. The choice itself is made in `model::underlay`.

use std::net::Ipv4Addr;

use tracing::debug;

use crate::kernel::{Kernel, KernelError};
use crate::model::host::Host;
use crate::model::underlay::{Choice, NoUnderlay, Underlay};

/// What looking gave.
#[derive(Debug)]
pub(super) struct Look {
    /// What was chosen, or why nothing can be.
    pub(super) chosen: Result<Underlay, NoUnderlay>,
    /// What it was chosen from.
    pub(super) host: Host,
}

/// Looks at the host and chooses.
///
/// # Errors
/// When the host cannot be read.
pub(super) fn look<K: Kernel>(choice: &Choice, kernel: &mut K) -> Result<Look, KernelError> {
    let host = kernel.host()?;
    let chosen = choice.on(&host, |ip| kernel.route_to(ip).map_err(|error| error.to_string()));
    Ok(Look { chosen, host })
}

/// Addresses that must never be routed into the overlay: the store's, the underlay's own, and the next hops on the way.
pub(super) fn needed<K: Kernel>(kernel: &mut K, store: &[Ipv4Addr], underlay: &Underlay) -> Vec<Ipv4Addr> {
    let mut needed = store.to_vec();
    for address in store {
        match kernel.route_to(*address) {
            Ok(route) => needed.extend(route.gateway),
            Err(error) => debug!(%address, %error, "no way to the store now"),
        }
    }
    needed.extend([underlay.external.address, underlay.public_ip]);
    needed.sort_unstable();
    needed.dedup();
    needed
}
