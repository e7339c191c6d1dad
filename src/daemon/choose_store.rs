//! Finds out which of etcd's stores holds the network, and waits until one does.

use std::time::Duration;

use tracing::{error, info};

use super::{Fatal, Reporter};
use crate::status::Phase;
use crate::store::{Candidates, Choice, Ourselves, Store, StoreError};

/// Pause between two looks.
const RETRY: Duration = Duration::from_secs(1);

/// Looks until a store is chosen, and says why that one.
///
/// # Errors
/// When the connection is misconfigured.
pub async fn choose_store(
    candidates: &Candidates,
    own: Ourselves,
    reporter: &mut Reporter,
) -> Result<Store, Fatal> {
    let mut last = String::new();
    loop {
        let problem = match candidates.choose(own).await {
            Ok(Choice::Chosen(store, reason)) => {
                info!(%reason, "store chosen");
                return Ok(store);
            }
            Ok(Choice::Missing(text)) => text,
            Err(StoreError::Config(text)) => return Err(Fatal::Config(text)),
            Err(error) => error.to_string(),
        };
        if problem != last {
            error!(%problem, "waiting for the network config");
            last.clone_from(&problem);
        }
        reporter.waiting(Phase::WaitingForConfig { reason: problem });
        tokio::time::sleep(RETRY).await;
    }
}
