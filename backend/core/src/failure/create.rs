//! What an error of a create or delete means.

use super::short;
use crate::cluster::ClusterError;
use podbay::v1::Reason;
use std::time::Duration;

/// What a failed create means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateFailure {
    /// It will not work; told at once.
    Certain(Reason, String),
    /// Try again. Where `uncertain`, the pod may have been made all the same.
    MayHeal {
        /// What to say at the end.
        reason: Reason,
        /// In words.
        message: String,
        /// The server asked to wait so long.
        retry_after: Option<Duration>,
        /// Whether the request may have had its effect.
        uncertain: bool,
    },
    /// A pod of this name is there.
    Exists,
}

/// What this error of a create means.
pub fn of_create(error: &ClusterError) -> CreateFailure {
    use CreateFailure::{Certain, Exists, MayHeal};
    let heals = |reason, message, retry_after, uncertain| MayHeal { reason, message, retry_after, uncertain };
    match error {
        ClusterError::AlreadyExists => Exists,
        // A policy's and a webhook's refusals have whatever code they choose; policies that name none have 422.
        ClusterError::Invalid { message } if is_refused_by_admission(message) => forbidden(message),
        ClusterError::Invalid { message } => {
            Certain(Reason::PodInvalid, format!("Kubernetes refuses the pod as invalid: {}", short(message)))
        }
        // A create finds only its namespace missing.
        ClusterError::NotFound { message } => {
            Certain(Reason::NamespaceMissing, format!("the namespace for pods is missing: {}", short(message)))
        }
        ClusterError::Forbidden { message } => forbidden(message),
        // A quota's counter was changed by another request at the same moment.
        ClusterError::Conflict { message } => {
            heals(Reason::KubernetesUnavailable, format!("Kubernetes was busy: {}", short(message)), None, false)
        }
        // Tokens rotate.
        ClusterError::Unauthorized { message } => heals(
            Reason::BackendNotAllowed,
            format!("Kubernetes does not accept the backend's credentials: {}", short(message)),
            None,
            false,
        ),
        ClusterError::Unavailable { message, retry_after } => heals(
            Reason::KubernetesUnavailable,
            format!("the Kubernetes API is not available: {}", short(message)),
            *retry_after,
            true,
        ),
        ClusterError::Unreachable { message } => heals(
            Reason::KubernetesUnavailable,
            format!("the Kubernetes API can't be reached: {}", short(message)),
            None,
            false,
        ),
        ClusterError::Timeout(bound) => heals(
            Reason::KubernetesUnavailable,
            format!("the Kubernetes API does not answer within {bound:?}"),
            None,
            true,
        ),
    }
}

fn is_refused_by_admission(message: &str) -> bool {
    message.contains(" denied request: ") || message.contains(" denied the request")
}

fn forbidden(message: &str) -> CreateFailure {
    use CreateFailure::{Certain, MayHeal};
    let text = short(message);
    let has = |words: &str| message.contains(words);
    let heals = |reason, message| MayHeal { reason, message, retry_after: None, uncertain: false };
    if has("exceeded quota") || has("status unknown for quota") {
        heals(Reason::QuotaExceeded, format!("the quota for pods is used up: {text}"))
    } else if has("because it is being terminated") {
        Certain(Reason::NamespaceMissing, format!("the namespace for pods is being deleted: {text}"))
    } else if has("error looking up service account") {
        // A namespace that was just made gets its accounts a moment later.
        heals(Reason::AdmissionDenied, format!("the pod's service account is missing: {text}"))
    } else if has("cannot create resource") {
        Certain(Reason::BackendNotAllowed, format!("the backend has no right to make pods: {text}"))
    } else if has("violates PodSecurity") {
        Certain(Reason::AdmissionDenied, format!("the namespace's Pod Security level forbids the pod: {text}"))
    } else {
        Certain(Reason::AdmissionDenied, format!("Kubernetes forbids the pod: {text}"))
    }
}

/// What to say where a deletion did not come to its end, and why.
pub fn of_delete(last: Option<&ClusterError>) -> (Reason, String) {
    match last {
        None => (Reason::PodStopTimeout, "the pod was not gone in time; it will be removed later".into()),
        Some(ClusterError::Forbidden { message }) => {
            (Reason::BackendNotAllowed, format!("the backend has no right to delete pods: {}", short(message)))
        }
        Some(error) => {
            (Reason::PodStopTimeout, format!("the pod could not be deleted in time: {}", short(&error.to_string())))
        }
    }
}
