//! Callers of the gRPC contract who want more than they may have.

use podbay::v1::{
    self, Exec, Open, ResumeFrom, connection_service_client::ConnectionServiceClient, exit::End, open::Program,
    run_session_request::Frame as To, run_session_response::Frame as From,
    session_service_client::SessionServiceClient,
};
use podbay_tests::{PATIENCE, Setup, World};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

const USER: &str = "demo";

fn id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

async fn connect(channel: &Channel, owner_id: &str, restrictions: Option<v1::Restrictions>) -> (String, Vec<u8>) {
    let connection_id = id();
    let request = v1::OpenConnectionRequest {
        connection_id: connection_id.clone(),
        owner_id: owner_id.to_owned(),
        user: Some(v1::User { name: USER.to_owned(), authenticated_name: String::new() }),
        restrictions,
        ..v1::OpenConnectionRequest::default()
    };
    let mut events =
        ConnectionServiceClient::new(channel.clone()).open_connection(request).await.expect("is answered").into_inner();
    loop {
        let event = events.message().await.expect("opens").expect("an event").event;
        if let Some(v1::open_connection_response::Event::Opened(opened)) = event {
            return (connection_id, opened.handle.to_vec());
        }
    }
}

/// A stream; it is the session's for as long as the sender lives.
async fn stream(
    channel: &Channel,
    open: Open,
) -> (tokio::sync::mpsc::Sender<v1::RunSessionRequest>, Streaming<v1::RunSessionResponse>) {
    let (to, requests) = tokio::sync::mpsc::channel(4);
    to.send(v1::RunSessionRequest { frame: Some(To::Open(open)) }).await.expect("room");
    let mut client = SessionServiceClient::new(channel.clone());
    let frames = client.run_session(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
    (to, frames)
}

/// How a stream went on for so long.
enum Went {
    On,
    Ended(Box<v1::Exit>),
}

/// The program's end, or nothing once it has run for so long on this stream.
async fn follow(frames: &mut Streaming<v1::RunSessionResponse>, time: Duration) -> Went {
    let mut patience = PATIENCE;
    loop {
        let Ok(frame) = timeout(patience, frames.message()).await else {
            assert!(patience == time, "no Started in time");
            return Went::On;
        };
        match frame.expect("no status").expect("an exit before the end").frame {
            Some(From::Exit(exit)) => return Went::Ended(Box::new(exit)),
            // A start takes what it takes.
            Some(From::Started(started)) => {
                assert!(started.durable);
                patience = time;
            }
            _ => {}
        }
    }
}

async fn close(channel: &Channel, connection_id: String) {
    let request = v1::CloseConnectionRequest { connection_id, keep_detached: false };
    ConnectionServiceClient::new(channel.clone()).close_connection(request).await.expect("closes");
}

/// A handle for the session that any caller gets who may act for the user.
async fn listed(channel: &Channel, session: &str) -> Vec<u8> {
    let request = v1::ListSessionsRequest { user: USER.to_owned(), ..v1::ListSessionsRequest::default() };
    let page = SessionServiceClient::new(channel.clone()).list_sessions(request).await.expect("lists").into_inner();
    page.sessions.into_iter().find(|found| found.session_id == session).expect("it is there").handle.to_vec()
}

/// What a caller says of the time that its program has run, at each attempt.
type Says = fn(u32) -> Option<prost_types::Duration>;

#[test]
fn a_caller_that_lies_about_time_gains_none() {
    const LIMIT: Duration = Duration::from_secs(8);
    let lies: [(&str, Says); 3] = [
        ("it began just now", |_| Some(prost_types::Duration::default())),
        ("nothing", |_| None),
        ("it will begin", |attempt| Some(prost_types::Duration { seconds: -i64::from(attempt) * 3600, nanos: 0 })),
    ];
    for mode in ["connection+podbay", "session+podbay"] {
        let world = World::with(Setup::Apart, mode, |config| config + "security: {maxSessionTime: 8s}\n");
        world.by_grpc(async |channel| {
            let owner = id();
            let (connection, handle) = connect(&channel, &owner, None).await;
            for (number, (what, says)) in lies.into_iter().enumerate() {
                let (session, began) = (id(), Instant::now());
                let mut attempt = 0;
                let exit = loop {
                    attempt += 1;
                    let beat = v1::HeartbeatRequest { owner_id: owner.clone(), ..v1::HeartbeatRequest::default() };
                    ConnectionServiceClient::new(channel.clone()).heartbeat(beat).await.expect("renewed");
                    // By turns with the connection's own handle, and as somebody who comes by the list.
                    let by_list = attempt > 1 && number == 1 && attempt % 2 == 0;
                    let open = Open {
                        handle: if by_list { listed(&channel, &session).await } else { handle.clone() }.into(),
                        session_id: session.clone(),
                        attempt,
                        take_over: by_list,
                        resume_from: (attempt > 1).then(ResumeFrom::default),
                        program: Some(Program::Exec(Exec { command: "exec sleep 1000".into(), argv: Vec::new() })),
                        ran: says(attempt),
                        ..Open::default()
                    };
                    let (_to, mut frames) = stream(&channel, open).await;
                    // A stream that breaks is no end of the program.
                    match follow(&mut frames, Duration::from_secs(1)).await {
                        Went::On => assert!(began.elapsed() < LIMIT + PATIENCE, "{mode}, {what}: it runs on"),
                        Went::Ended(exit) => break exit,
                    }
                };
                let took = began.elapsed();
                let Some(End::Lost(refusal)) = exit.end else { panic!("{mode}, {what}: {:?}", exit.end) };
                assert_eq!(refusal.reason(), v1::Reason::Policy, "{mode}, {what}: {}", refusal.message);
                // The program began within the first stream's start.
                assert!(took >= LIMIT && attempt > 3, "{mode}, {what}: {took:?}, {attempt} attempts");
                assert!(took < LIMIT + Duration::from_secs(20), "{mode}, {what}: {took:?}");
            }
            close(&channel, connection).await;
        });
        world.ends_clean();
    }
}

#[test]
fn a_restriction_holds_for_whoever_finds_the_session_later() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config);
    world.by_grpc(async |channel| {
        let by = v1::Restrictions { force_command: Some("exit 9".into()), no_terminal: true };
        let (connection, handle) = connect(&channel, &id(), Some(by)).await;
        let exec = |handle: Vec<u8>, session: String| Open {
            handle: handle.into(),
            session_id: session,
            program: Some(Program::Exec(Exec { command: String::new(), argv: vec!["sleep".into(), "1000".into()] })),
            ..Open::default()
        };
        let session = id();
        let (_to, mut frames) = stream(&channel, exec(handle.clone(), session.clone())).await;
        let Went::Ended(exit) = follow(&mut frames, PATIENCE).await else { panic!("it sleeps") };
        assert_eq!(exit.end, Some(End::Code(9)));
        // Its exit is kept, so it is on the list, with a handle that knows of no login.
        let found = listed(&channel, &session).await;
        let (_to, mut frames) = stream(&channel, exec(found.clone(), id())).await;
        let Went::Ended(exit) = follow(&mut frames, PATIENCE).await else { panic!("it sleeps") };
        assert_eq!(exit.end, Some(End::Code(9)));
        for handle in [handle, found] {
            let open = Open { pty: Some(v1::Pty::default()), ..exec(handle, id()) };
            let (_to, mut frames) = stream(&channel, open).await;
            let status = frames.message().await.expect_err("no terminal");
            assert_eq!(podbay::refusal_of(&status).reason(), v1::Reason::Policy, "{status}");
        }
        close(&channel, connection).await;
    });
    world.ends_clean();
}

#[test]
fn a_program_that_is_left_alone_again_and_again_ends_in_time_too() {
    let world = World::with(Setup::Apart, "connection+podbay", |config| config + "security: {maxSessionTime: 3s}\n");
    world.by_grpc(async |channel| {
        let owner = id();
        let (connection, handle) = connect(&channel, &owner, None).await;
        let (session, began) = (id(), Instant::now());
        let open = Open {
            handle: handle.clone().into(),
            session_id: session.clone(),
            program: Some(Program::Exec(Exec { command: "exec sleep 1000".into(), argv: Vec::new() })),
            ..Open::default()
        };
        let (to, mut frames) = stream(&channel, open.clone()).await;
        let first = frames.message().await.expect("no status").expect("a frame").frame;
        assert!(matches!(first, Some(From::Started(_))), "{first:?}");
        drop((to, frames));
        let mut client = SessionServiceClient::new(channel.clone());
        let exit = loop {
            let beat = v1::HeartbeatRequest { owner_id: owner.clone(), ..v1::HeartbeatRequest::default() };
            ConnectionServiceClient::new(channel.clone()).heartbeat(beat).await.expect("renewed");
            let leave = v1::DetachRequest { handle: handle.clone().into(), session_id: session.clone(), keep: None };
            client.detach(leave).await.expect("it is there to be left");
            let collect =
                v1::CollectExitRequest { handle: handle.clone().into(), session_id: session.clone(), wait: None };
            if let Some(exit) = client.collect_exit(collect).await.expect("is answered").into_inner().exit {
                break exit;
            }
            assert!(began.elapsed() < PATIENCE, "it runs on");
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        assert!(began.elapsed() >= Duration::from_secs(3));
        assert!(matches!(&exit.end, Some(End::Signal(signal)) if signal.name == "HUP"), "{exit:?}");
        // Who comes late has its end, and not a refusal.
        let late = Open { take_over: true, resume_from: Some(ResumeFrom::default()), attempt: 2, ..open };
        let (_to, mut frames) = stream(&channel, late).await;
        let Went::Ended(told) = follow(&mut frames, PATIENCE).await else { panic!("no end") };
        assert_eq!(*told, exit);
        close(&channel, connection).await;
    });
    world.ends_clean();
}
