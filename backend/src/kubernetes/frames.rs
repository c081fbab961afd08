//! The bytes of `v5.channel.k8s.io` and `v4.channel.k8s.io`: one channel byte, then data. Pure.

use bytes::{BufMut as _, Bytes, BytesMut};
use podbay_backend_core::cluster::StreamEnd;
use serde::Deserialize;

/// The largest piece of data in one message, either way: the API server and the kubelet copy through 32 KiB buffers, so
/// larger ones give nothing.
pub(super) const PIECE: usize = 32 * 1024;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a message from the server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Of stdout; not empty.
    Stdout(Bytes),
    /// Of stderr; not empty.
    Stderr(Bytes),
    /// A piece of the final Status; not empty.
    Status(Bytes),
    /// Nothing to act on: the empty messages at the start, or a channel that doesn't concern us.
    Nothing,
}

/// Reads a message.
pub(super) fn read(mut message: Bytes) -> Incoming {
    if message.len() < 2 {
        return Incoming::Nothing;
    }
    let channel = message.split_to(1);
    match channel.first() {
        Some(&STDOUT) => Incoming::Stdout(message),
        Some(&STDERR) => Incoming::Stderr(message),
        Some(&ERROR) => Incoming::Status(message),
        _ => Incoming::Nothing,
    }
}

/// A message of stdin. `piece` is at most [`PIECE`] long.
pub(super) fn stdin(piece: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(piece.len() + 1);
    message.put_u8(STDIN);
    message.put_slice(piece);
    message.freeze()
}

/// The end of stdin (v5 only).
pub(super) fn close_stdin() -> Bytes {
    Bytes::from_static(&[CLOSE, STDIN])
}

/// A new terminal size.
pub(super) fn resize((columns, rows): (u16, u16)) -> Bytes {
    let mut message = vec![RESIZE];
    message.extend_from_slice(format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes());
    message.into()
}

#[derive(Deserialize)]
struct Status {
    #[serde(default, rename = "status")]
    outcome: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// How the program ended, by a whole Status; `None` while it isn't one.
pub(super) fn end_of(json: &[u8]) -> Option<StreamEnd> {
    let status: Status = serde_json::from_slice(json).ok()?;
    match status.outcome.as_str() {
        "Success" => return Some(StreamEnd::Success),
        "Failure" => (),
        _ => return None,
    }
    if status.reason == "NonZeroExitCode" {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let code = causes.filter(|cause| cause.reason == "ExitCode").find_map(|cause| cause.message.parse().ok());
        // A 'failure' of code 0, or a code that is no byte, is not something to guess about.
        if let Some(code @ 1..=255) = code {
            return Some(StreamEnd::ExitCode(code));
        }
    }
    Some(StreamEnd::Failed { reason: status.reason, message: status.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_empty_ones_ignored() {
        assert_eq!(read(Bytes::from_static(b"\x01out")), Incoming::Stdout("out".into()));
        assert_eq!(read(Bytes::from_static(b"\x02err")), Incoming::Stderr("err".into()));
        assert_eq!(read(Bytes::from_static(b"\x03{}")), Incoming::Status("{}".into()));
        for nothing in [&b""[..], b"\x01", b"\x02", b"\x03", b"\x00x", b"\xff\x01", b"\x09x"] {
            assert_eq!(read(Bytes::copy_from_slice(nothing)), Incoming::Nothing, "{nothing:?}");
        }
        assert_eq!(
            resize((80, 24)),
            Bytes::from_static(br#"{"Width":80,"Height":24}"#).iter().fold(
                BytesMut::from(&[RESIZE][..]),
                |mut message, &byte| {
                    message.put_u8(byte);
                    message
                }
            )
        );
        assert_eq!(stdin(b"ab"), Bytes::from_static(b"\x00ab"));
    }

    #[test]
    fn only_a_status_that_says_so_is_a_success() {
        let exit = |code: &str| {
            format!(
                r#"{{"metadata":{{}},"status":"Failure","message":"m","reason":"NonZeroExitCode",
                "details":{{"causes":[{{"reason":"Other","message":"3"}},{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
            )
        };
        assert_eq!(end_of(br#"{"metadata":{},"status":"Success"}"#), Some(StreamEnd::Success));
        assert_eq!(end_of(exit("7").as_bytes()), Some(StreamEnd::ExitCode(7)));
        assert_eq!(end_of(exit("255").as_bytes()), Some(StreamEnd::ExitCode(255)));
        let failed = |reason: &str| Some(StreamEnd::Failed { reason: reason.into(), message: "m".into() });
        for code in ["0", "256", "-1", "x", ""] {
            assert_eq!(end_of(exit(code).as_bytes()), failed("NonZeroExitCode"), "{code}");
        }
        assert_eq!(end_of(br#"{"status":"Failure","reason":"InternalError","message":"m"}"#), failed("InternalError"));
        for nothing in ["", "{", "{}", "null", r#"{"status":""}"#, r#"{"status":"success"}"#, "Success"] {
            assert_eq!(end_of(nothing.as_bytes()), None, "{nothing}");
        }
    }
}
