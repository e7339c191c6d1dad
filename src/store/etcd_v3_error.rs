//! What the errors of etcd's v3 API mean for a call: ask another member, log in again, or give up.

use etcd_client::Error;
use tonic::{Code, Status};

use super::connect::{Cause, ConnectError, root_cause};
use super::endpoints::Failure;

/// Sorts an error by what to do next.
pub(super) fn failure(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => of_status(status),
        Error::TransportError(error) => of_cause(root_cause(error)),
        Error::IoError(error) => Failure::Dead(error.to_string()),
        Error::WatchError(reason) | Error::LeaseKeepAliveError(reason) => Failure::Dead(reason.clone()),
        other => Failure::Refused(other.to_string()),
    }
}

/// etcd's own messages begin with its name; everything else comes from the connection.
const OWN: &str = "etcdserver: ";

fn of_status(status: &Status) -> Failure {
    let text = status.message();
    let own = text.strip_prefix(OWN).map(str::to_owned);
    match (status.code(), own) {
        (Code::Unauthenticated, _) => Failure::Stale(text.to_owned()),
        (_, Some(reason)) if is_stale(&reason) => Failure::Stale(reason),
        (Code::Unavailable, Some(reason)) => Failure::Busy(reason),
        (Code::ResourceExhausted, Some(reason)) if reason == "too many requests" => Failure::Busy(reason),
        (Code::DataLoss, Some(reason)) => Failure::Dead(reason),
        (_, Some(reason)) => Failure::Refused(reason),
        (
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded,
            None,
        ) => std::error::Error::source(status)
            .map_or_else(|| Failure::Dead(text.to_owned()), |source| of_cause(root_cause(source))),
        (_, None) => Failure::Refused(text.to_owned()),
    }
}

/// Words of a store that knows us, but by a token that is not good any more.
fn is_stale(reason: &str) -> bool {
    matches!(reason, "invalid auth token" | "revision of auth store is old")
}

fn of_cause(cause: Cause<'_>) -> Failure {
    match cause {
        Cause::Connect(ConnectError::Files(error)) => Failure::Config(error.to_string()),
        Cause::Connect(error) => Failure::Dead(error.to_string()),
        Cause::Other(reason) => Failure::Dead(reason),
    }
}

/// Why the store ended a watch by itself.
pub(super) fn cancelled(reason: &str) -> Failure {
    let own = reason.strip_prefix(OWN).unwrap_or(reason);
    match own {
        "" => Failure::Stale("the watch was cancelled without a reason".to_owned()),
        "no leader" => Failure::Busy(own.to_owned()),
        _ if is_stale(own) => Failure::Stale(own.to_owned()),
        _ => Failure::Refused(own.to_owned()),
    }
}

fn says(error: &Error, text: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(text))
}

/// The answer is larger than what we are willing to decode.
pub(super) fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.code() == Code::OutOfRange)
}

/// The store knows no users.
pub(super) fn is_auth_disabled(error: &Error) -> bool {
    says(error, "authentication is not enabled")
}

/// The id of a new lease is taken.
pub(super) fn is_lease_exists(error: &Error) -> bool {
    says(error, "lease already exists")
}

/// There is no such lease (any more).
pub(super) fn is_lease_missing(error: &Error) -> bool {
    says(error, "requested lease not found")
        || matches!(error, Error::LeaseKeepAliveError(reason) if reason == "lease not found")
}
