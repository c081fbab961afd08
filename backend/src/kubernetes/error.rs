//! kube's errors in the port's words.

use kube::{Error, core::Status};
use podbay_backend_core::cluster::ClusterError;
use std::{error::Error as _, fmt::Write as _, time::Duration};

/// What a failed request means.
pub(super) fn cluster_error(error: &Error) -> ClusterError {
    match error {
        Error::Api(status) => of_status(status),
        other if never_sent(other) => ClusterError::Unreachable { message: chain(other) },
        other => unavailable(chain(other)),
    }
}

/// Whether the connection for the request could not be made. (A pooled connection that broke may have carried it.)
fn never_sent(error: &Error) -> bool {
    let mut http = causes(error).filter_map(|cause| cause.downcast_ref::<hyper_util::client::legacy::Error>());
    http.any(hyper_util::client::legacy::Error::is_connect)
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

pub(super) fn unavailable(message: String) -> ClusterError {
    ClusterError::Unavailable { message, retry_after: None }
}

/// By the HTTP code; 409 by its reason too.
pub(super) fn of_status(status: &Status) -> ClusterError {
    let message = status.message.clone();
    match (status.code, status.reason.as_str()) {
        (404, _) => ClusterError::NotFound { message },
        (409, "AlreadyExists") => ClusterError::AlreadyExists,
        (409, _) => ClusterError::Conflict { message },
        (400 | 422, _) => ClusterError::Invalid { message },
        (403, _) => ClusterError::Forbidden { message },
        (401, _) => ClusterError::Unauthorized { message },
        (code, reason) => {
            let retry_after = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|&s| s > 0);
            ClusterError::Unavailable {
                message: if message.is_empty() { format!("{code} {reason}") } else { message },
                retry_after: retry_after.map(|seconds| Duration::from_secs(u64::from(seconds))),
            }
        }
    }
}

/// An error with its causes: hyper's and rustls' own texts say little alone.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String can't fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    if ["certificate not valid yet", "certificate expired"].iter().any(|words| text.contains(words)) {
        text.push_str("; is the backend's clock right?");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart() {
        let status = |code: u16, reason: &str| {
            let mut status = Status::failure("m", reason);
            status.code = code;
            format!("{:?}", of_status(&status))
        };
        for (code, reason, wanted) in [
            (404, "NotFound", "NotFound"),
            (409, "AlreadyExists", "AlreadyExists"),
            (409, "Conflict", "Conflict"),
            (422, "Invalid", "Invalid"),
            (400, "BadRequest", "Invalid"),
            (403, "Forbidden", "Forbidden"),
            (401, "Unauthorized", "Unauthorized"),
            (429, "TooManyRequests", "Unavailable"),
            (500, "InternalError", "Unavailable"),
            (503, "", "Unavailable"),
        ] {
            assert!(status(code, reason).starts_with(wanted), "{code} {reason}");
        }
    }
}
