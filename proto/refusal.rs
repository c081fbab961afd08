//! A refusal as a gRPC status, and back.
//!
//! The status carries the sentence as its message, and in its details a `google.rpc.ErrorInfo` for tools that know
//! only that, and our own [`Refusal`] with the typed reason.

use crate::v1::{Reason, Refusal};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::pb;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const REFUSAL: &str = "type.googleapis.com/podbay.v1.Refusal";

/// The domain of our `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "podbay.dev";

/// The longest message of a refusal in bytes: details travel in a trailer, and those are bounded.
const MAX_TEXT: usize = 1024;

impl Refusal {
    /// A refusal with its sentence for the person at the terminal; longer than 1 KiB is cut.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT - 3).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        Self { reason: reason.into(), message, connection_id: String::new() }
    }

    /// The same, about this connection.
    #[must_use]
    pub fn about(mut self, connection: crate::ConnectionId) -> Self {
        self.connection_id = connection.to_string();
        self
    }

    /// As the status of a call.
    pub fn into_status(self) -> Status {
        let code = code_of(self.reason());
        let info = pb::ErrorInfo {
            reason: self.reason().as_str_name().trim_start_matches("REASON_").to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: [("connection_id".to_owned(), self.connection_id.clone())].into(),
        };
        let details = pb::Status {
            code: code as i32,
            message: self.message.clone(),
            details: vec![any(ERROR_INFO, &info), any(REFUSAL, &self)],
        };
        Status::with_details(code, self.message, details.encode_to_vec().into())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.into_status()
    }
}

fn any(type_url: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// The refusal in a status, or one made from its code where a proxy, the transport or another server sent it.
pub fn refusal_of(status: &Status) -> Refusal {
    pb::Status::decode(status.details())
        .ok()
        .into_iter()
        .flat_map(|status| status.details)
        .find(|detail| detail.type_url == REFUSAL)
        .and_then(|detail| Refusal::decode(detail.value.as_slice()).ok())
        .unwrap_or_else(|| Refusal::new(reason_of(status.code()), status.message()))
}

/// Best guess of a reason for a status without our detail.
fn reason_of(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Reason::InvalidRequest,
        Code::Unauthenticated => Reason::CallerUnknown,
        Code::PermissionDenied => Reason::CallerNotAllowed,
        Code::Unimplemented => Reason::Unimplemented,
        Code::ResourceExhausted => Reason::Limit,
        Code::NotFound => Reason::NotFound,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Reason::StreamLost,
    }
}

/// The gRPC code that goes with a reason (the table in docs/contract.md).
pub fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest | Reason::ProtocolViolation => Code::InvalidArgument,
        Reason::CallerUnknown => Code::Unauthenticated,
        Reason::CallerNotAllowed | Reason::Policy | Reason::HandleInvalid => Code::PermissionDenied,
        Reason::Unimplemented => Code::Unimplemented,
        Reason::Limit | Reason::QuotaExceeded | Reason::Unschedulable => Code::ResourceExhausted,
        Reason::ConfigTooLarge
        | Reason::ConfigWebhook
        | Reason::OwnerExpired
        | Reason::PodInvalid
        | Reason::AdmissionDenied
        | Reason::NamespaceMissing
        | Reason::BackendNotAllowed
        | Reason::ImageUnavailable
        | Reason::ContainerFailed
        | Reason::PodGone
        | Reason::CommandNotStarted
        | Reason::SubsystemUnknown
        | Reason::SignalNotDelivered
        | Reason::AgentMissing => Code::FailedPrecondition,
        Reason::Draining | Reason::KubernetesUnavailable | Reason::StreamLost => Code::Unavailable,
        Reason::NotFound => Code::NotFound,
        Reason::PodStartTimeout
        | Reason::CommandStartTimeout
        | Reason::PodStopTimeout
        | Reason::SignalTimeout
        | Reason::WindowTimeout => Code::DeadlineExceeded,
        Reason::ProgramLost => Code::DataLoss,
        Reason::Superseded | Reason::Terminated => Code::Aborted,
        Reason::Unspecified | Reason::Internal => Code::Internal,
    }
}

/// gRPC's own word for a code, such as `OK` and `UNAVAILABLE`; for metrics.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_gives_the_refusal_back() {
        let refusal = Refusal::new(Reason::ImageUnavailable, "image nosuch:1 can't be pulled");
        let status = refusal.clone().into_status();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), refusal.message);
        assert_eq!(refusal_of(&status), refusal);
        let info = tonic_types::StatusExt::get_details_error_info(&status).expect("an ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("IMAGE_UNAVAILABLE", DOMAIN));
    }

    #[test]
    fn a_foreign_status_is_never_a_success() {
        assert_eq!(refusal_of(&Status::unavailable("x")).reason(), Reason::StreamLost);
        assert_eq!(refusal_of(&Status::ok("")).reason(), Reason::StreamLost);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let refusal = Refusal::new(Reason::Internal, "ü".repeat(MAX_TEXT));
        assert!(refusal.message.len() <= MAX_TEXT && refusal.message.ends_with('…'));
    }
}
