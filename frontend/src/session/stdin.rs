//! The client's input, on its way to the program.

use super::link::{Gone, Link};
use crate::ssh::Input;
use podbay::{
    FRAME,
    v1::{self, Stream, run_session_request::Frame},
};

/// Feeds the program within its credit until the input ends, is closed, or the stream is gone. Dropping it may lose a
/// piece: do so only when the session is over.
pub async fn feed(link: &Link, input: &Input) {
    let _ = feeding(link, input).await;
}

async fn feeding(link: &Link, input: &Input) -> Result<(), Gone> {
    loop {
        let room = link.room().await;
        let Ok(piece) = input.take(room.min(FRAME)).await else { return Ok(()) };
        let stream = Stream::Stdin.into();
        let Some(data) = piece else {
            let offset = link.sent();
            let (id, _) = link.ask(|id| Frame::Eof(v1::Eof { stream, offset, id })).await?;
            link.forget(id);
            return Ok(());
        };
        let offset = link.sending(data.len());
        link.send(Frame::Data(v1::Data { stream, offset, data })).await?;
    }
}
