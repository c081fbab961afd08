//! The link between a backend and the supervisor in a pod, and the byte-stream bookkeeping that frontend, backend and agent
//! share.
//!
//! Sans-I/O throughout: nothing here owns a socket, a process or a clock; time is a parameter.
//!
//! - [`flow`]: offsets, credit and acknowledgements of one direction of one byte stream.
//! - [`frame`]: the frames of `podbay.agent.v1`, their encoder and incremental decoder; [`proto`]: the control messages.
//! - [`ring`] and [`output`]: the windows that keep bytes until they are acknowledged.
//! - [`host::Host`]: the supervisor's end. Programs by session, links, fencing, replay, exits, the memory budget.
//! - [`client::Client`]: the backend's end of one pod's link. What to send, and to send again after the link was lost.
//!
//! docs/design/0005-agent-link.md tells the protocol and its reasons.

pub mod budget;
pub mod client;
pub mod flow;
pub mod frame;
pub mod host;
pub mod id;
pub mod output;
pub mod program;
pub mod proto;
pub mod ring;
