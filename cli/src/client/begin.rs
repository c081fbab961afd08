//! `podbay run` and `podbay shell`: a new session in a new pod.

use super::{
    FAILED,
    args::{How, Run, Shell},
    attach::leave,
    connection::{self, Opening},
    dialogue::Ended,
    exit::{passed_on, status_of},
    local::Signals,
    pump::Pump,
    store::Record,
    terminal,
};
use podbay::{
    SessionId,
    v1::{self, open::Program, output_when_detached::Mode},
};
use std::{collections::HashMap, io::Write as _, time::Duration};

/// What `--detach` keeps of each output: CI logs, not archives.
const SPILL: u64 = 1 << 30;

/// How long a detached session is kept; `None` = as long as the backend does by itself.
struct Keep(Option<Duration>);

impl Run {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<u8> {
        let Self { detach, keep, output, tty, how, command } = self;
        let program = Program::Exec(v1::Exec { command: String::new(), argv: command });
        let spill = v1::OutputWhenDetached { mode: Mode::Spill.into(), max_bytes: SPILL, then: Mode::Block.into() };
        let open = v1::Open {
            program: Some(program),
            output_when_detached: output.or_else(|| detach.then_some(spill)),
            ..v1::Open::default()
        };
        new_session(how, open, tty, detach.then_some(Keep(keep))).await
    }
}

impl Shell {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<u8> {
        let open = v1::Open { program: Some(Program::Shell(v1::Shell {})), ..v1::Open::default() };
        new_session(self.how, open, true, None).await
    }
}

async fn new_session(how: How, open: v1::Open, tty: bool, detach: Option<Keep>) -> anyhow::Result<u8> {
    let (user, store) = (how.who.name()?, how.who.store()?);
    let mut backends = how.server.read()?;
    // From here on a signal leaves in order: nothing that was begun stays.
    let mut signals = Signals::catch()?;
    let channel = tokio::select! {
        channel = backends.connect() => channel?,
        number = signals.leave() => return Ok(128 + number),
    };
    let mut opening = Opening::new(backends, channel);
    let opened = tokio::select! {
        opened = opening.open(&user) => opened.map(Ok),
        number = signals.leave() => Ok(Err(number)),
    };
    let connection = match opened {
        Ok(Ok(connection)) => connection,
        Ok(Err(number)) => {
            opening.undo().await;
            return Ok(128 + number);
        }
        Err(error) => {
            opening.undo().await;
            return Err(error);
        }
    };
    let (backends, channel) = opening.into_backend();
    let tty = tty && terminal::is_terminal();
    let pty = tty.then(|| v1::Pty {
        term: std::env::var("TERM").unwrap_or_default(),
        size: Some(terminal::size()),
        modes: Vec::new(),
    });
    let record = Record {
        session: SessionId::from_bytes(rand::random()),
        connection: connection.id,
        owner: connection.owner,
        user,
        handle: connection.handle.clone(),
        stdout: 0,
        stderr: 0,
        terminal: tty,
    };
    let environment: HashMap<String, String> = how.env.into_iter().collect();
    let open = v1::Open {
        handle: record.handle.clone().into(),
        session_id: record.session.to_string(),
        environment,
        pty,
        ..open
    };
    let mut pump = Pump::new(backends, channel, open, detach.is_some());
    // Before the program is there: should this process die, whoever knows the file can look.
    if let Err(error) = store.save(&record) {
        let (backends, channel) = pump.backend();
        connection::end(backends, channel, connection.heartbeats, record.connection, true).await;
        return Err(error);
    }
    if let Some(Keep(keep)) = detach {
        let left = match pump.run(&mut signals, false).await {
            Ok(Ended::Started) => leave(pump.backend().1, &record, keep).await.map(|_| None),
            Ok(Ended::Exit(exit)) => Err(anyhow::anyhow!(status_of(&exit).1)),
            Ok(Ended::Left(number)) => Ok(Some(128 + number)),
            Err(error) => Err(error),
        };
        let runs = matches!(left, Ok(None));
        let (backends, channel) = pump.backend();
        connection::end(backends, channel, connection.heartbeats, record.connection, !runs).await;
        if !runs {
            store.remove(record.session);
            return left.map(|status| status.unwrap_or(FAILED));
        }
        // It runs whether or not anybody reads this.
        let _ = writeln!(std::io::stdout(), "{}", record.session);
        return Ok(0);
    }
    let raw = if tty { terminal::Raw::enter() } else { None };
    if raw.is_some() {
        pump.follow_terminal();
    }
    let ended = pump.run(&mut signals, true).await;
    drop(raw);
    let status = match &ended {
        Ok(Ended::Exit(exit)) => passed_on(exit),
        Ok(Ended::Left(number)) => 128 + number,
        Ok(Ended::Started) | Err(_) => FAILED,
    };
    let (backends, channel) = pump.backend();
    connection::end(backends, channel, connection.heartbeats, record.connection, true).await;
    store.remove(record.session);
    ended.map(|_| status)
}
