//! The SSH frontend's decisions, without I/O.
//!
//! Nothing here knows russh, gRPC or a clock: what arrives is an event, time is a parameter, and what to do is the
//! result. [`SoftStop`] holds back one channel's input without stopping its neighbours; [`InputQueue`] keeps a
//! channel's input until the program takes it; [`ChannelState`] decides what each channel request means and how it is
//! answered; [`Policy`] which of them the backend would refuse; [`Ending`] says how a program's end looks to an SSH client; [`Startups`] thins out connections that have
//! not logged in; [`ClientSession`] keeps a program's session over all its streams.

pub mod channel;
pub mod env;
pub mod exit;
pub mod penalties;
pub mod policy;
pub mod queue;
pub mod session;
pub mod soft_stop;
pub mod startups;

pub use channel::{ChannelState, Program, PtyRequest, Request, Start, Step, WindowSize};
pub use env::{EnvError, Environment};
pub use exit::{Ending, Report};
pub use policy::Policy;
pub use queue::{InputQueue, Piece};
pub use session::{ClientSession, Event, Violation};
pub use soft_stop::{Limits, SoftStop, TINY, WindowExceeded};
pub use startups::Startups;
