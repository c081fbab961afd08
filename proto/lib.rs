//! The `podbay.v1` gRPC contract: the generated code, and the few conversions that both sides need.
//!
//! The `.proto` files under `proto/podbay/v1` are the contract; this crate adds identifiers that were parsed once
//! ([`ConnectionId`], [`SessionId`], [`OwnerId`]) and the mapping between a [`Refusal`](v1::Refusal) and a
//! [`tonic::Status`].

mod id;
mod policy;
mod refusal;

pub use id::{ConnectionId, IdError, OwnerId, SessionId};
pub use policy::Denied;
pub use refusal::{DOMAIN, code_name, code_of, refusal_of};

/// Generated from `proto/podbay/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, missing_debug_implementations)]
pub mod v1 {
    tonic::include_proto!("podbay.v1");
}

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The most bytes of one stream that may be under way beyond what its consumer has taken (contract: credit).
pub const MAX_CREDIT: u64 = 256 * 1024;

/// The best size of one [`Data`](v1::Data) frame: an SSH packet.
pub const FRAME: usize = 32 * 1024;

/// The largest gRPC message of `RunSession` that either side accepts.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// What the user of a connection reads that an operator ended with these words (which may be empty).
pub fn terminated_text(message: &str) -> String {
    match message {
        "" => "an operator ended this connection".to_owned(),
        message => format!("an operator ended this connection: {message}"),
    }
}

/// The largest handle.
pub const MAX_HANDLE: usize = 64 * 1024;
