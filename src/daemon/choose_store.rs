//! Finds out which of etcd's stores holds the network, and waits until one does.

use tracing::info;

use super::waiting::{Waiting, config_example};
use super::{Fatal, Reporter};
use crate::model::two_stores::Origin;
use crate::status::Phase;
use crate::store::{Candidates, Choice, Ourselves, Store, StoreError};

/// Looks until a store is chosen, and says why that one. `seed` is written first where there is no network config.
///
/// # Errors
/// When the connection is misconfigured.
pub async fn choose_store(
    candidates: &Candidates,
    own: Ourselves,
    seed: Option<&str>,
    reporter: &mut Reporter,
) -> Result<Store, Fatal> {
    let mut waiting = Waiting::new("the network config");
    loop {
        let problem = match seed_and_choose(candidates, own, seed).await {
            Ok(Choice::Chosen(store, reason)) => {
                info!(%reason, "store chosen");
                return Ok(store);
            }
            // A new network belongs into v3, which every etcd 3 serves.
            Ok(Choice::Missing(text)) => {
                format!("{text}: write it, e.g. {}", config_example(Origin::V3, &candidates.config_key()))
            }
            Err(StoreError::Config(text)) => return Err(Fatal::Config(text)),
            Err(error) => error.to_string(),
        };
        let phase = Phase::WaitingForConfig { reason: problem.clone() };
        waiting.pause(problem, phase, reporter).await;
    }
}

async fn seed_and_choose(
    candidates: &Candidates,
    own: Ourselves,
    seed: Option<&str>,
) -> Result<Choice, StoreError> {
    if let Some(config) = seed
        && let Some(store) = candidates.seed(config).await?
    {
        info!(%config, %store, "network config written, as there was none");
    }
    candidates.choose(own).await
}
