//! `podbay run`, `shell`, `attach` and `sessions`: a gRPC client of the contract, for CI and for people without SSH.

mod connection;
mod flow;
mod pump;
mod server;
mod store;
mod terminal;

use anyhow::{Context as _, bail};
use connection::{Heartbeats, bounded, told};
use flow::Output;
use podbay::{
    SessionId,
    v1::{self, open::Program, output_when_detached::Mode},
};
use pump::{Ended, Pump, status_of};
use server::{Server, sessions};
use std::{collections::HashMap, path::PathBuf, time::Duration};
use store::{Record, Store};
use tonic::transport::Channel;

/// The exit status of everything that is not the program's own.
pub const FAILED: u8 = 255;

/// What `--detach` keeps of each output: CI logs, not archives.
const SPILL: u64 = 1 << 30;

/// For whom, and what is remembered where.
#[derive(Debug, clap::Args)]
struct Who {
    /// The user whose sessions these are [default: $USER]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Where the handles of sessions are kept, one private file each
    /// [default: $XDG_STATE_HOME/podbay, else ~/.local/state/podbay]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Who {
    fn name(&self) -> anyhow::Result<String> {
        let user = self.user.clone().or_else(|| std::env::var("USER").ok()).filter(|user| !user.is_empty());
        user.context("no USER: give --user")
    }
}

/// How a new session runs.
#[derive(Debug, clap::Args)]
struct How {
    /// A variable of the program's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    server: Server,
}

/// `podbay run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Let it run alone: print its session's id, once it runs, and end. Its stdin is empty
    #[arg(long, short, conflicts_with = "tty")]
    detach: bool,
    /// With --detach: how long the session and then its exit are kept, for example 90m or 24h; the backend bounds it
    #[arg(long, value_name = "TIME", requires = "detach", value_parser = time)]
    keep: Option<Duration>,
    /// What happens to output while nobody takes it: `block` (the program waits), `keep-last` (the end of it is kept) or
    /// `spill=BYTES` (a file in the pod; then it waits) [default: block; with --detach spill=1073741824]
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    output: Option<v1::OutputWhenDetached>,
    /// Give it a terminal, where stdin is one
    #[arg(long, short)]
    tty: bool,
    #[command(flatten)]
    how: How,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `podbay shell`.
#[derive(Debug, clap::Args)]
pub struct Shell {
    #[command(flatten)]
    how: How,
}

/// `podbay attach`.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The session's id, or the beginning of it
    id: String,
    /// How long it is kept if this is told to leave it [default: what the backend allows]
    #[arg(long, value_name = "TIME", value_parser = time)]
    keep: Option<Duration>,
    /// Send this process's stdin to the program
    #[arg(long, short)]
    interactive: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    server: Server,
}

/// `podbay sessions`.
#[derive(Debug, clap::Args)]
pub struct Sessions {
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    server: Server,
}

/// Runs one of them; gives the exit status.
pub fn main(what: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(Box::pin(what))
}

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

/// How long a detached session is kept; `None` = as long as the backend does by itself.
struct Keep(Option<Duration>);

async fn new_session(how: How, open: v1::Open, tty: bool, detach: Option<Keep>) -> anyhow::Result<u8> {
    let (user, store) = (how.who.name()?, Store::open(how.who.state_dir.clone())?);
    let mut backends = how.server.read()?;
    let channel = backends.connect().await?;
    let tty = tty && terminal::is_terminal();
    let pty = tty.then(|| v1::Pty {
        term: std::env::var("TERM").unwrap_or_default(),
        size: Some(terminal::size()),
        modes: Vec::new(),
    });
    let environment: HashMap<String, String> = how.env.into_iter().collect();
    let connection = connection::open(&backends, &channel, &user).await?;
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
    // Before the program is there: should this process die, whoever knows the file can look.
    store.save(&record)?;
    let open = v1::Open { environment, pty, ..open };
    let mut pump = Pump::new(backends, channel, record.handle.clone(), record.session, open);
    if let Some(Keep(keep)) = detach {
        pump.starts_only();
        let started = pump.run(false).await;
        let left = match started {
            Ok(Ended::Started) => leave(&pump.channel, &record, keep).await,
            Ok(Ended::Exit(exit)) => Err(anyhow::anyhow!(status_of(&exit).1)),
            Ok(Ended::Left) => Err(anyhow::anyhow!("interrupted before the program ran alone")),
            Err(error) => Err(error),
        };
        connection::end(&pump.channel, connection.heartbeats, record.connection, left.is_err()).await;
        if let Err(error) = left {
            store.remove(record.session);
            return Err(error);
        }
        println!("{}", record.session);
        return Ok(0);
    }
    let raw = if tty { terminal::Raw::enter() } else { None };
    pump.raw = raw.is_some();
    let ended = pump.run(true).await;
    drop(raw);
    let status = match &ended {
        Ok(Ended::Exit(exit)) => passed_on(exit),
        Ok(Ended::Started | Ended::Left) | Err(_) => FAILED,
    };
    connection::end(&pump.channel, connection.heartbeats, record.connection, true).await;
    store.remove(record.session);
    ended.map(|_| status)
}

fn passed_on(exit: &v1::Exit) -> u8 {
    let (status, words) = status_of(exit);
    if !words.is_empty() {
        eprintln!("podbay: {words}");
    }
    status
}

/// Leaves a session running.
async fn leave(channel: &Channel, record: &Record, keep: Option<Duration>) -> anyhow::Result<Duration> {
    let request = v1::DetachRequest {
        handle: record.handle.clone().into(),
        session_id: record.session.to_string(),
        keep: keep.and_then(|keep| prost_types::Duration::try_from(keep).ok()),
    };
    let kept = sessions(channel).detach(bounded(request)).await.map_err(|status| told(&status))?.into_inner().keep;
    Ok(kept.and_then(|keep| Duration::try_from(keep).ok()).unwrap_or_default())
}

impl Attach {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<u8> {
        let store = Store::open(self.who.state_dir.clone())?;
        let mut backends = self.server.read()?;
        let channel = backends.connect().await?;
        let (mut record, ours) = self.find(&store, &channel).await?;
        // While this runs the pod is its owner's again, should its time be over meanwhile.
        let heartbeats =
            ours.then(|| Heartbeats::start(backends.clone(), channel.clone(), record.owner, record.connection));
        // Nothing is started by it, but a frame without a program makes no sense.
        let open = v1::Open { program: Some(Program::Shell(v1::Shell {})), ..v1::Open::default() };
        let mut pump = Pump::new(backends, channel, record.handle.clone(), record.session, open);
        pump.take_over = true;
        pump.stdout = Output::from(record.stdout);
        pump.stderr = Output::from(record.stderr);
        let raw = if self.interactive && record.terminal { terminal::Raw::enter() } else { None };
        pump.raw = raw.is_some();
        let ended = pump.run(self.interactive).await;
        drop(raw);
        (record.stdout, record.stderr) = (pump.stdout.written, pump.stderr.written);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                if ours {
                    store.save(&record)?;
                }
                return Err(error);
            }
        };
        match ended {
            Ended::Exit(exit) => {
                let status = passed_on(&exit);
                let request =
                    v1::AckExitRequest { handle: record.handle.clone().into(), session_id: record.session.to_string() };
                // One that is gone with its pod has nothing to acknowledge.
                if let Err(refused) = sessions(&pump.channel).ack_exit(bounded(request)).await
                    && status != FAILED
                {
                    eprintln!("podbay: the exit is not acknowledged: {:#}", told(&refused));
                }
                if let Some(heartbeats) = heartbeats {
                    connection::end(&pump.channel, heartbeats, record.connection, true).await;
                    store.remove(record.session);
                }
                Ok(status)
            }
            Ended::Left | Ended::Started => {
                if !pump.input.is_safe() {
                    eprintln!("podbay: the last of stdin may not have reached the program");
                }
                let kept = leave(&pump.channel, &record, self.keep).await?;
                if let Some(heartbeats) = heartbeats {
                    store.save(&record)?;
                    connection::end(&pump.channel, heartbeats, record.connection, false).await;
                }
                eprintln!("podbay: it runs on, and is kept for {} s: podbay attach {}", kept.as_secs(), record.session);
                Ok(0)
            }
        }
    }

    /// The session, and whether it was begun here.
    async fn find(&self, store: &Store, channel: &Channel) -> anyhow::Result<(Record, bool)> {
        let mut local = store.find(&self.id)?;
        match (local.pop(), local.is_empty()) {
            (Some(record), true) => return Ok((record, true)),
            (Some(_), false) => bail!("{:?} begins more than one session's id: give more of it", self.id),
            (None, _) => {}
        }
        let user = self.who.name()?;
        let mut found = list(channel, &user).await?;
        found.retain(|session| session.session_id.starts_with(&self.id));
        let session = match (found.pop(), found.is_empty()) {
            (Some(session), true) => session,
            (Some(_), false) => bail!("{:?} begins more than one session's id: give more of it", self.id),
            (None, _) => bail!("{user} has no session {}: podbay sessions lists them", self.id),
        };
        let record = Record {
            session: session.session_id.parse()?,
            connection: session.connection_id.parse()?,
            owner: podbay::OwnerId::from_bytes([0; 16]),
            user,
            handle: session.handle.to_vec(),
            stdout: 0,
            stderr: 0,
            terminal: terminal::is_terminal(),
        };
        Ok((record, false))
    }
}

/// All sessions of a user.
async fn list(channel: &Channel, user: &str) -> anyhow::Result<Vec<v1::Session>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSessionsRequest { user: user.to_owned(), page_size: 0, page_token };
        let page = sessions(channel).list_sessions(bounded(request)).await.map_err(|status| told(&status))?;
        let page = page.into_inner();
        all.extend(page.sessions);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

impl Sessions {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<u8> {
        let user = self.who.name()?;
        let store = Store::open(self.who.state_dir)?;
        let channel = self.server.read()?.connect().await?;
        let all = list(&channel, &user).await?;
        if !all.is_empty() {
            println!("{:<32}  {:<32}  {:<5}  STATE", "SESSION", "CONNECTION", "HERE");
        }
        for session in all {
            let here = if store.find(&session.session_id)?.is_empty() { "" } else { "yes" };
            let state = match &session.exit {
                None => "running".to_owned(),
                Some(exit) => match status_of(exit) {
                    (status, words) if words.is_empty() => format!("ended with status {status}"),
                    (_, words) => words,
                },
            };
            println!("{:<32}  {:<32}  {here:<5}  {state}", session.session_id, session.connection_id);
        }
        Ok(0)
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "not a time such as 90m or 24h")?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("not a time such as 90m or 24h".to_owned()),
    };
    number.checked_mul(seconds).filter(|it| *it > 0).map(Duration::from_secs).ok_or("out of range".to_owned())
}

fn policy(text: &str) -> Result<v1::OutputWhenDetached, String> {
    let simple = |mode: Mode| v1::OutputWhenDetached { mode: mode.into(), ..v1::OutputWhenDetached::default() };
    match text.split_once('=') {
        None if text == "block" => Ok(simple(Mode::Block)),
        None if text == "keep-last" => Ok(simple(Mode::KeepLast)),
        Some(("spill", bytes)) => {
            let max_bytes = bytes.parse().ok().filter(|bytes| *bytes > 0).ok_or("spill=BYTES: a number above 0")?;
            Ok(v1::OutputWhenDetached { max_bytes, then: Mode::Block.into(), ..simple(Mode::Spill) })
        }
        _ => Err("block, keep-last or spill=BYTES".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_the_command_line() {
        assert_eq!(time("90m"), Ok(Duration::from_mins(90)));
        for bad in ["", "5", "m", "0s", "1w", "99999999999999999999s", "9999999999999999999d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(policy("spill=5").map(|p| (p.mode(), p.max_bytes, p.then())), Ok((Mode::Spill, 5, Mode::Block)));
        for bad in ["", "spill", "spill=0", "spill=x", "keep", "block=1"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }
}
