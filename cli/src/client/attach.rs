//! `podbay attach`: back to a session that runs, or has ended, alone.

use super::{
    FAILED,
    args::Attach,
    connection::{self, Heartbeats, bounded, told},
    dialogue::Ended,
    exit::passed_on,
    local::Signals,
    pump::Pump,
    say,
    server::sessions,
    sessions::list,
    store::{Record, Store},
    terminal,
};
use anyhow::bail;
use podbay::v1::{self, open::Program};
use std::time::Duration;
use tonic::transport::Channel;

/// Leaves a session running; gives how long it is kept.
pub async fn leave(channel: &Channel, record: &Record, keep: Option<Duration>) -> anyhow::Result<Duration> {
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
        let store = self.who.store()?;
        let mut backends = self.server.read()?;
        let mut signals = Signals::catch()?;
        let found = async {
            let channel = backends.connect().await?;
            let found = self.find(&store, &channel).await?;
            anyhow::Ok((channel, found))
        };
        let (channel, (mut record, ours)) = tokio::select! {
            found = found => found?,
            number = signals.leave() => return Ok(128 + number),
        };
        // While this runs the pod is its owner's again, should its time be over meanwhile.
        let heartbeats =
            ours.then(|| Heartbeats::start(backends.clone(), channel.clone(), record.owner, record.connection));
        let open = v1::Open {
            handle: record.handle.clone().into(),
            session_id: record.session.to_string(),
            // Nothing is started by it, but a frame without a program makes no sense.
            program: Some(Program::Shell(v1::Shell {})),
            ..v1::Open::default()
        };
        let from = v1::ResumeFrom { stdout: record.stdout, stderr: record.stderr };
        let mut pump = Pump::attaching(backends, channel, open, record.terminal, from);
        let raw = if self.interactive && record.terminal { terminal::Raw::enter() } else { None };
        if raw.is_some() {
            pump.follow_terminal();
        }
        let ended = pump.run(&mut signals, self.interactive).await;
        drop(raw);
        v1::ResumeFrom { stdout: record.stdout, stderr: record.stderr } = pump.written();
        match ended {
            Ok(Ended::Exit(exit)) => Ok(self.ended(&exit, pump, &record, heartbeats, &store).await),
            Ok(Ended::Left(_) | Ended::Started) => {
                if ours {
                    store.save(&record)?;
                }
                if !pump.is_stdin_safe() {
                    say("the last of stdin may not have reached the program");
                }
                let (backends, channel) = pump.backend();
                let kept = leave(channel, &record, self.keep).await;
                if let Some(heartbeats) = heartbeats {
                    connection::end(backends, channel, heartbeats, record.connection, false).await;
                }
                say(format_args!(
                    "it runs on, and is kept for {} s: podbay attach {}",
                    kept?.as_secs(),
                    record.session
                ));
                Ok(0)
            }
            Err(error) => {
                if ours {
                    store.save(&record)?;
                }
                Err(error)
            }
        }
    }

    /// All of it was delivered: the pod may forget it.
    async fn ended(
        &self,
        exit: &v1::Exit,
        mut pump: Pump,
        record: &Record,
        heartbeats: Option<Heartbeats>,
        store: &Store,
    ) -> u8 {
        let status = passed_on(exit);
        let (backends, channel) = pump.backend();
        let request =
            v1::AckExitRequest { handle: record.handle.clone().into(), session_id: record.session.to_string() };
        // One that is gone with its pod has nothing to acknowledge.
        if let Err(refused) = sessions(channel).ack_exit(bounded(request)).await
            && status != FAILED
        {
            say(format_args!("the exit is not acknowledged: {:#}", told(&refused)));
        }
        if let Some(heartbeats) = heartbeats {
            connection::end(backends, channel, heartbeats, record.connection, true).await;
            store.remove(record.session);
        }
        status
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
