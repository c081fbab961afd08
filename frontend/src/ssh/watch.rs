//! Whether a client is still there while a webhook is asked about it.
//!
//! russh reads nothing while a callback waits, so nobody would notice. A second handle on the same socket does.

use std::{os::fd::AsFd as _, time::Duration};
use tokio::{io::Interest, net::TcpStream, time::sleep};

/// With bytes unread, the socket tells of its end no other way: look again after this.
const AGAIN: Duration = Duration::from_millis(250);

/// Looks at a socket and reads nothing.
#[derive(Debug, Default)]
pub struct Watch(Option<TcpStream>);

impl Watch {
    /// On the socket of this stream. Where none can be made, nothing is noticed: a login only lasts longer.
    pub fn new(stream: &TcpStream) -> Self {
        let second = stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from).and_then(TcpStream::from_std);
        Self(second.ok())
    }

    /// Returns when the client has left. Cancel safe.
    pub async fn left(&self) {
        let Some(stream) = &self.0 else { return std::future::pending().await };
        loop {
            match stream.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => sleep(AGAIN).await,
                Ok(_) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_behind_unread_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
        let stream = listener.accept().await.expect("accepts").0;
        let watch = Watch::new(&stream);
        client.write_all(b"unread").await.expect("writes");
        assert!(timeout(Duration::from_millis(300), watch.left()).await.is_err(), "it is there");
        drop(client);
        timeout(Duration::from_secs(20), watch.left()).await.expect("noticed");
    }
}
