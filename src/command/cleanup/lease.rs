//! Gives this node's lease back: deletes its key, if it is ours and nobody has written it meanwhile.
//!
//! Whose it is, is decided by `model::acquire`, as at the daemon's start.

use crate::command::own_lease::{self, Found};
use crate::kernel::{LinuxKernel, ReceiveBuffers};
use crate::model::acquire::{Decision, Listed};
use crate::model::lease;
use crate::options::Options;
use crate::store::LeaseStore;
use crate::subnet_env::Previous;

/// What became of the lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Its key is deleted: which one.
    Back(String),
    /// It stays, and why.
    Stays(String),
    /// This node has none.
    Nothing,
}

/// Gives it back.
///
/// # Errors
/// With words for the operator.
pub(super) async fn give_back(options: &Options, previous: &Previous) -> Result<Given, String> {
    let mut kernel = LinuxKernel::open(ReceiveBuffers::default()).map_err(|error| error.to_string())?;
    let found = own_lease::find(options, previous, &mut kernel).await;
    let found = found.map_err(|error| format!("the lease cannot be looked for: {error}"))?;
    let Some(found) = found else { return Ok(Given::Nothing) };
    match &found.decision {
        Decision::Adopt(ours) | Decision::Release(ours) => delete(&found, ours).await,
        Decision::Refuse { subnet, other } => Err(format!(
            "the lease of {subnet} has the public IP of this node, {}, but belongs to another machine ({other})",
            found.underlay.public_ip
        )),
        Decision::Create(_) | Decision::OutOfSubnets => Ok(Given::Nothing),
    }
}

async fn delete(found: &Found, ours: &Listed) -> Result<Given, String> {
    let (subnet, store) = (ours.subnet, &found.store);
    let Some(record) = found.snapshot.records.get(ours.index) else { return Ok(Given::Nothing) };
    if record.lease.is_none() {
        return Ok(Given::Stays(format!(
            "the lease of {subnet}: it is a reservation that somebody made; its key …/subnets/{} can be deleted by hand",
            lease::key_of(subnet)
        )));
    }
    match store.delete(subnet, record.modified).await {
        Ok(true) => Ok(Given::Back(format!("the lease of {subnet} from {}", store.describe()))),
        Ok(false) => {
            Err(format!("the lease of {subnet} was written by somebody at this very moment: run this again"))
        }
        Err(error) => Err(format!("the lease of {subnet} cannot be deleted: {error}")),
    }
}
