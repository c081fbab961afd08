//! `podbay agent-binary`: hands out the guest agent that this program carries.

use anyhow::{Context as _, bail};
use std::io::{self, IsTerminal as _, Write as _};

pub(crate) fn main() -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        bail!("not writing a program to a terminal: use `podbay agent-binary >FILE`");
    }
    // A short write would be a broken program in an image: say so, and not by status 0.
    out.write_all(podbay_agent_embed::BINARY).and_then(|()| out.flush()).context("could not write the agent to stdout")
}
