//! From an Open to a program on a link: started there, or continued.

use super::{Begun, Durable, Output, Stdin, frames::wire_size, over::RESTARTED, waits::Waits};
use crate::{
    cluster::{PodRef, StreamEnd},
    failure::short,
    handle::Contents,
    link::{Health, LinkEnded, LinkProgram, News},
    policy::{Clock, Known, Security, agents_limit},
    session::{
        Opening, Sessions,
        ending::{of_broken, of_lost_program, of_pod},
        rules::Ids,
    },
};
use bytes::Bytes;
use podbay::v1::{self, AgentLevel, Reason, Refusal, run_session_response::Frame as Out};
use podbay_agent_wire::{
    client::{Event, ResumeFrom},
    id::Attempt,
    program::{Pty, Start},
    proto,
};
use std::{collections::VecDeque, sync::Arc};
use tokio::time::{Instant, timeout_at};

impl Sessions {
    /// Starts a program over the link, or continues with one. Dropping it leaves what was begun to its orphan timeout.
    pub(in crate::session) async fn begin(
        &self,
        contents: &Contents,
        opening: &Opening,
        pod: PodRef,
        mut link: LinkProgram,
        deadline: Instant,
    ) -> Result<Begun, Refusal> {
        let resume = opening.resume.unwrap_or_default();
        let from = ResumeFrom {
            stdout: resume.stdout,
            stdout_credit: opening.stdout_credit,
            stderr: resume.stderr,
            stderr_credit: if opening.tty { 0 } else { opening.stderr_credit },
        };
        let attempt = Attempt::new(opening.attempt);
        let continues = opening.take_over || opening.resume.is_some();
        let ended = |LinkEnded| Refusal::new(Reason::Internal, "the link to the pod's agent ended");
        if continues {
            link.attach(opening.session, attempt, opening.take_over, from).await.map_err(ended)?;
        } else {
            link.start(opening.session, attempt, start(opening, &contents.security), from).await.map_err(ended)?;
        }
        let event = match timeout_at(deadline, link.news.recv()).await {
            Ok(Some(News::Wire(event))) => event,
            Ok(Some(News::Other(found, words))) => return Ok(Begun::Other(found, words)),
            Ok(Some(News::Gone(found))) => {
                let end = StreamEnd::Lost(RESTARTED.to_owned());
                let exit = match of_pod(&found, &contents.console) {
                    Some(exit) => exit,
                    None => of_broken(&**self.lifecycle.cluster(), &pod, &contents.console, &end).await,
                };
                return Ok(Begun::Ended(exit));
            }
            Ok(None) => return Err(ended(LinkEnded)),
            Err(_) => {
                // What has begun by now is ended; what ran before may be reached by another replica.
                if !continues {
                    let _ = link.commands().release().await;
                }
                return Err(late(&link.health.borrow(), continues));
            }
        };
        match event {
            Event::Started { stdin_offset, stdin_credit, stdin_ended, terminal, resumed, ran, ended, .. } => {
                let known = Known { resumed, ran, ended };
                let clock = Clock::of_agent(&contents.security, Instant::now(), &known, opening.ran)?;
                let mut durable = Durable {
                    pod,
                    own_pod: None,
                    place: None,
                    leases: self.leases.clone(),
                    cluster: Arc::clone(self.lifecycle.cluster()),
                    commands: link.commands(),
                    link,
                    tty: terminal,
                    ids: Ids::default(),
                    stdin: Stdin { from: stdin_offset, at: stdin_offset, limit: stdin_credit, ended: stdin_ended },
                    stdout: Output { from: resume.stdout, at: resume.stdout, ended: false },
                    stderr: Output { from: resume.stderr, at: resume.stderr, ended: false },
                    eof: None,
                    control: VecDeque::new(),
                    data: VecDeque::new(),
                    ending: None,
                    exit: None,
                    waits: Waits { within: contents.timeouts.relink, now: None },
                    signal_bound: contents.timeouts.signal,
                    window_bound: contents.timeouts.window,
                    resizes: VecDeque::new(),
                    policy: contents.security.clone(),
                    clock,
                    cut: None,
                };
                durable.control.push_back(Out::Started(v1::Started {
                    durable: true,
                    agent_level: AgentLevel::Podbay.into(),
                    stdin_offset,
                    stdin_credit,
                    pod_namespace: durable.pod.namespace.clone(),
                    pod_name: durable.pod.name.clone(),
                    warning: String::new(),
                }));
                Ok(Begun::Running(Box::new(durable)))
            }
            Event::Closed { reason: proto::Reason::UnknownSession | proto::Reason::InstanceDiffers, .. } => {
                let found = self.lifecycle.cluster().get_pod(&pod).await;
                Ok(Begun::Ended(of_lost_program(&found, &contents.console)))
            }
            Event::Closed { reason, message, .. } => Err(not_started(reason, &message)),
            other => {
                tracing::warn!(?other, "the agent tells something before Started");
                Err(Refusal::new(Reason::Internal, "the pod's agent answers out of order"))
            }
        }
    }
}

/// Why a session did not begin within its time. One that `continues` may do so on another replica.
fn late(health: &Health, continues: bool) -> Refusal {
    let text = "the program was not started in time (timeouts.commandStart)";
    let (reason, text) = match health {
        Health::Up => (Reason::CommandStartTimeout, text.to_owned()),
        Health::Down { api: true, why, .. } if continues => {
            (Reason::KubernetesUnavailable, format!("the Kubernetes API does not answer: {why}"))
        }
        Health::Down { api: false, why, .. } if continues => {
            (Reason::StreamLost, format!("the pod's agent can't be reached: {why}"))
        }
        Health::Down { why, .. } => {
            (Reason::CommandStartTimeout, format!("{text}: the pod's agent can't be reached: {why}"))
        }
    };
    Refusal::new(reason, text)
}

pub(super) fn not_started(reason: proto::Reason, message: &str) -> Refusal {
    use proto::Reason as Wire;
    let words = short(message);
    match reason {
        Wire::NotFound | Wire::NotPermitted | Wire::ExecFailed => {
            Refusal::new(Reason::CommandNotStarted, format!("the program can't be started: {words}"))
        }
        Wire::AttemptTooLow | Wire::Superseded => {
            Refusal::new(Reason::Superseded, "another client has taken this session over")
        }
        Wire::Limit | Wire::OutOfMemory => Refusal::new(Reason::Limit, format!("too much runs in this pod: {words}")),
        Wire::SessionOver | Wire::Forgotten => Refusal::new(Reason::NotFound, "this session is over"),
        Wire::BadOffset | Wire::Invalid => {
            Refusal::new(Reason::InvalidRequest, format!("the session can't be continued there: {words}"))
        }
        other => Refusal::new(Reason::ContainerFailed, format!("the pod's agent refuses: {other:?} {words}")),
    }
}

fn start(opening: &Opening, security: &Security) -> Start {
    let mut start = Start::new(opening.argv.iter().map(|word| Bytes::from(word.clone())));
    start.environment = opening
        .environment
        .iter()
        .map(|(name, value)| (Bytes::from(name.clone()), Bytes::from(value.clone())))
        .collect();
    start.pty = opening.pty.as_ref().map(|pty| Pty {
        term: pty.term.clone(),
        size: wire_size(pty.size.unwrap_or_default()),
        modes: pty.modes.iter().filter_map(|mode| Some((u8::try_from(mode.opcode).ok()?, mode.value))).collect(),
    });
    start.output = opening.output;
    start.limit = agents_limit(security);
    start
}
