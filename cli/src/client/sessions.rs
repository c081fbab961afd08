//! `podbay sessions`: what a user can attach to.

use super::{
    args::Sessions,
    connection::{bounded, told},
    exit::status_of,
    server,
};
use podbay::v1;
use std::io::Write as _;
use tonic::transport::Channel;

/// All sessions of a user.
pub async fn list(channel: &Channel, user: &str) -> anyhow::Result<Vec<v1::Session>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSessionsRequest { user: user.to_owned(), page_size: 0, page_token };
        let page = server::sessions(channel).list_sessions(bounded(request)).await.map_err(|status| told(&status))?;
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
        let store = self.who.store()?;
        let channel = self.server.read()?.connect().await?;
        let all = list(&channel, &user).await?;
        let row = |id: &str, connection: &str, here: &str, state: &str| {
            format!("{id:<32}  {connection:<32}  {here:<5}  {state}\n")
        };
        let mut table = Vec::new();
        if !all.is_empty() {
            table.push(row("SESSION", "CONNECTION", "HERE", "STATE"));
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
            table.push(row(&session.session_id, &session.connection_id, here, &state));
        }
        // A pipe whose reader has seen enough is no fault.
        match std::io::stdout().write_all(table.concat().as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(0),
        }
    }
}
