//! The client's input, on its way to the program.

use super::link::Link;
use crate::ssh::Input;
use podbay::FRAME;

/// Feeds the program within its credit until the input ends or is closed. Dropping it may lose a piece: do so only when the
/// session is over.
pub async fn feed(link: &Link, input: &Input) {
    loop {
        let room = link.room().await;
        match input.take(room.min(FRAME)).await {
            Ok(Some(piece)) => link.push(piece),
            Ok(None) => return link.end_stdin(),
            Err(_) => return,
        }
    }
}
