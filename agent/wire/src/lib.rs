//! Byte streams with absolute offsets, credit and acknowledgements: the bookkeeping that frontend, backend and agent
//! share.
//!
//! Sans-I/O: these types own no bytes, socket or clock. The frames of `podbay.agent.v1` and the replay window join
//! them here with the agent's own issue.

pub mod flow;
