//! The sessions' clients: what each sends and asks for, from which replica, and what it must get.

use super::{World, byte};
use podbay_agent_wire::{
    client::{Event, Key, ResumeFrom},
    frame::Stream,
    id::{Attempt, SessionId},
    program::{Exit, Start},
    proto::Reason,
};
use std::time::Duration;

/// That each user asks for.
pub const SIGNALS: u64 = 5;

/// The session's client: a frontend.
pub struct User {
    session: SessionId,
    pub number: u8,
    pub total: u64,
    attempt: u32,
    pub at: Option<(usize, Key)>,
    pub started: bool,
    starts: usize,
    pub sent: u64,
    pub credit: u64,
    acked: u64,
    eof_sent: bool,
    pub got: [u64; 2],
    granted: [u64; 2],
    ended: [bool; 2],
    /// Signals that were asked for and are not answered.
    pub asked: Vec<u64>,
    next_id: u64,
    pub exit: bool,
    pub forgotten: bool,
    /// Former attachments: replica, key, stdin sent, credit.
    former: Vec<(usize, Key, u64, u64)>,
}

impl User {
    /// `size` is which of four lengths its stdin has.
    pub fn new(number: u8, size: usize) -> Self {
        Self {
            session: SessionId([number; 16]),
            number,
            total: [0, 10, 40_000, 400_000][size],
            attempt: 0,
            at: None,
            started: false,
            starts: 0,
            sent: 0,
            credit: 0,
            acked: 0,
            eof_sent: false,
            got: [0; 2],
            granted: [0; 2],
            ended: [false; 2],
            asked: Vec::new(),
            next_id: 1,
            exit: false,
            forgotten: false,
            former: Vec::new(),
        }
    }
}

impl World {
    pub fn users_work(&mut self, trouble: bool) {
        for at in 0..self.users.len() {
            if self.users[at].at.is_none() && !self.users[at].forgotten {
                self.open(at);
            }
            let amount = [1, 100, 50_000][self.random.below(3)];
            let take = !trouble || self.random.one_in(2);
            let user = &mut self.users[at];
            let Some((replica, key)) = user.at else { continue };
            let client = &mut self.clients[replica];
            if !user.started || user.exit {
                continue;
            }
            let len = amount.min(user.total - user.sent).min(user.credit.saturating_sub(user.sent)).min(60_000);
            let bytes: Vec<u8> = (user.sent..user.sent + len).map(|offset| byte(user.number, offset)).collect();
            if len > 0 {
                client.stdin(key, user.sent, &bytes).expect("within the credit");
                user.sent += len;
            }
            // Signals stand before the end of stdin, so that the program lives.
            if user.next_id <= SIGNALS && self.random.one_in(3) {
                client.signal(key, user.next_id, "USR1", self.now + Duration::from_secs(10_000)).expect("a signal");
                user.asked.push(user.next_id);
                user.next_id += 1;
            }
            if user.sent == user.total && user.next_id > SIGNALS && user.asked.is_empty() && !user.eof_sent {
                user.eof_sent = true;
                client.eof(key, 1000, user.total).expect("an end");
            }
            if take {
                for (which, stream) in [(0, Stream::Stdout), (1, Stream::Stderr)] {
                    client.ack(key, stream, user.got[which]);
                    user.granted[which] = user.granted[which].max(user.got[which] + amount);
                    client.credit(key, stream, user.granted[which]);
                }
            }
        }
    }

    fn open(&mut self, at: usize) {
        let replica = self.random.below(self.clients.len());
        let user = &mut self.users[at];
        if let (Some((replica, key)), true) = (user.at, user.started) {
            user.former.push((replica, key, user.sent, user.credit));
        }
        user.attempt += 1;
        user.granted = user.got.map(|got| got + 1000);
        user.started = false;
        user.eof_sent = false;
        let from = ResumeFrom {
            stdout: user.got[0],
            stdout_credit: user.granted[0],
            stderr: user.got[1],
            stderr_credit: user.granted[1],
        };
        let attempt = Attempt::new(user.attempt);
        let client = &mut self.clients[replica];
        let key = if user.starts > 0 {
            client.attach(user.session, attempt, false, from)
        } else {
            client.start(user.session, attempt, &Start::new([vec![user.number]]), from)
        };
        user.at = Some((replica, key));
        self.check();
    }

    pub fn move_a_session(&mut self) {
        if self.clients.len() < 2 {
            return;
        }
        let at = self.random.below(self.users.len());
        if !self.users[at].forgotten && !self.users[at].exit {
            self.open(at);
        }
    }

    /// Replicas that don't have a program any more and don't know it send garbage for it.
    pub fn late_stdin(&mut self) {
        for user in self.users.iter_mut().filter(|user| user.started) {
            for (replica, key, sent, credit) in user.former.drain(..) {
                let len = credit.saturating_sub(sent).min(100);
                // The replica may have learnt that the program is another's.
                let _ = self.clients[replica].stdin(key, sent, &vec![0xee; len as usize]);
                let _ = self.clients[replica].signal(key, 77, "KILL", self.now + Duration::from_secs(100));
            }
        }
    }

    pub fn event(&mut self, replica: usize, event: Event) {
        let find = |users: &mut Vec<User>, key: Key| users.iter().position(|user| user.at == Some((replica, key)));
        match event {
            Event::Started { key, stdin_offset, stdin_credit, .. } => {
                let Some(at) = find(&mut self.users, key) else { return };
                let user = &mut self.users[at];
                user.started = true;
                user.starts += 1;
                assert!(stdin_offset >= user.acked, "an ack was no promise");
                user.sent = stdin_offset;
                user.credit = stdin_credit;
                let asked = user.asked.clone();
                for id in asked {
                    let deadline = self.now + Duration::from_secs(10_000);
                    self.clients[replica].signal(key, id, "USR1", deadline).expect("a signal");
                }
            }
            Event::Data { key, stream, offset, data } => {
                let Some(at) = find(&mut self.users, key) else { return };
                let user = &mut self.users[at];
                let which = usize::from(stream == Stream::Stderr);
                assert_eq!(offset, user.got[which], "in order, once");
                assert!(offset + data.len() as u64 <= user.granted[which]);
                for (n, &got) in data.iter().enumerate() {
                    let offset = offset + n as u64;
                    let wanted =
                        if which == 0 { byte(user.number, offset) ^ 0x55 } else { byte(user.number, offset * 7) };
                    assert_eq!(got, wanted, "output {which} at {offset}");
                }
                user.got[which] += data.len() as u64;
            }
            Event::Credit { key, limit } => {
                let Some(at) = find(&mut self.users, key) else { return };
                self.users[at].credit = limit;
            }
            Event::Ack { key, offset } => {
                let Some(at) = find(&mut self.users, key) else { return };
                self.users[at].acked = offset;
            }
            Event::End { key, stream, offset } => {
                let Some(at) = find(&mut self.users, key) else { return };
                let which = usize::from(stream == Stream::Stderr);
                assert_eq!(offset, self.users[at].got[which]);
                self.users[at].ended[which] = true;
            }
            Event::Answer { key, id, result } => {
                let Some(at) = find(&mut self.users, key) else { return };
                if id != 1000 {
                    assert_eq!(result.is_err(), id % 2 == 0, "{result:?}");
                    assert!(self.users[at].asked.contains(&id), "answered once");
                    self.users[at].asked.retain(|asked| *asked != id);
                }
            }
            Event::Exit { key, exit, .. } => {
                let Some(at) = find(&mut self.users, key) else { return };
                let user = &mut self.users[at];
                assert_eq!(exit, Exit::Code(user.number));
                assert_eq!(user.got, [user.total, user.total.div_ceil(7)]);
                assert_eq!(user.ended, [true; 2]);
                assert!(!std::mem::replace(&mut user.exit, true), "once");
                self.clients[replica].ack_exit(user.session);
            }
            Event::Forgotten { session, running } => {
                assert!(!running);
                let user = self.users.iter_mut().find(|user| user.session == session).expect("a user");
                assert!(user.exit);
                user.forgotten = true;
                user.at = None;
            }
            Event::Closed { key, reason, .. } => {
                if find(&mut self.users, key).is_some() {
                    assert_eq!(reason, Reason::Forgotten, "{:?}", self.state());
                }
            }
            Event::Linked { .. } | Event::Relinked { .. } => {}
            Event::Gap { .. } | Event::Listed { .. } | Event::FileWritten { .. } => {
                panic!("nobody asked for {event:?}")
            }
        }
    }
}
