//! The first frame of a session.

use crate::backend::{Terms, phase::Opened};
use bytes::Bytes;
use podbay::{SessionId, v1};
use podbay_frontend_core::{Program, Start, WindowSize};
use std::time::Duration;

/// The size as the contract writes it.
pub fn size(size: WindowSize) -> v1::WindowSize {
    v1::WindowSize {
        columns: size.columns.into(),
        rows: size.rows.into(),
        width_pixels: size.width.into(),
        height_pixels: size.height.into(),
    }
}

/// Open of a program that has run for so long, but for what its link knows: attempt, offsets and credits.
pub fn frame(opened: &Opened, id: SessionId, start: &Start, ran: Duration) -> v1::Open {
    let pty = start.pty.as_ref().map(|pty| v1::Pty {
        term: pty.term.clone(),
        size: Some(size(pty.size)),
        modes: pty
            .modes
            .iter()
            .map(|(opcode, value)| v1::TerminalMode { opcode: u32::from(*opcode), value: *value })
            .collect(),
    });
    let env = &opened.terms.policy.env;
    let program = match &start.program {
        Program::Shell => v1::open::Program::Shell(v1::Shell {}),
        Program::Exec(command) => v1::open::Program::Exec(v1::Exec { command: command.clone(), argv: Vec::new() }),
        Program::Subsystem(name) => v1::open::Program::Subsystem(v1::Subsystem { name: name.clone() }),
    };
    v1::Open {
        handle: Bytes::clone(&opened.handle.load()),
        session_id: id.to_string(),
        // Those that came before the policy was known; the client takes no notice of refused ones either.
        environment: start.env.clone().into_entries().into_iter().filter(|(name, _)| env.passes(name)).collect(),
        ran: prost_types::Duration::try_from(ran).ok(),
        pty,
        program: Some(program),
        ..Default::default()
    }
}

/// The name of a subsystem that the backend has said it does not have.
pub fn unknown_subsystem<'a>(program: &'a Program, terms: &Terms) -> Option<&'a str> {
    match program {
        Program::Subsystem(name) if !terms.subsystems.is_empty() && !terms.subsystems.contains(name) => Some(name),
        Program::Subsystem(_) | Program::Shell | Program::Exec(_) => None,
    }
}
