//! Settings of the socket and of russh.

use crate::config::SshConfig;
use russh::{
    MethodSet, Preferred, SshId, compression, kex,
    keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey},
    server,
};
use std::{borrow::Cow, io, time::Duration};
use tokio::net::TcpStream;

/// Six failures, and the `none` that every OpenSSH client begins with.
const MAX_ATTEMPTS: usize = 7;

/// The kernel's keepalives where ours are off: often enough for most NAT tables.
const TCP_ALIVE: Duration = Duration::from_mins(1);

/// russh's settings for all connections.
pub fn russh_config(ssh: &SshConfig, keys: Vec<PrivateKey>, methods: MethodSet) -> server::Config {
    server::Config {
        server_id: SshId::Standard(Cow::Owned(ssh.server_version.clone())),
        methods,
        // A wrong password waits in our own code; a key that is not known costs nothing, and clients offer many.
        auth_rejection_time: Duration::from_millis(20),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys,
        // The read half of each channel is dropped, so its queue holds nothing.
        channel_buffer_size: 1,
        preferred: preferred(ssh),
        max_auth_attempts: MAX_ATTEMPTS,
        // It would also cut busy connections; keepalives tell who is gone, and we keep our own handshake timer.
        inactivity_timeout: None,
        keepalive_interval: ssh.client_alive_interval,
        keepalive_max: ssh.client_alive_count_max,
        nodelay: true,
        ..server::Config::default()
    }
}

fn preferred(ssh: &SshConfig) -> Preferred {
    let mut kexes = ssh.algorithms.kex.clone();
    kexes.extend([kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER]);
    Preferred {
        kex: Cow::Owned(kexes),
        // No ssh-rsa: that is SHA-1.
        key: Cow::Owned(vec![
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
        ]),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Owned(ssh.algorithms.ciphers.clone()),
        mac: Cow::Owned(ssh.algorithms.macs.clone()),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// No delay, and a peer that vanished is noticed. The user timeout follows the keepalives: it also ends a connection
/// whose client is stopped (`^Z`) while output waits, and that must take no less time than unanswered keepalives do.
pub fn socket_options(stream: &TcpStream, ssh: &SshConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let Some(interval) = ssh.client_alive_interval else {
        // As sshd's TCPKeepAlive: without our own keepalives the kernel's find a peer that is gone, however late.
        let keepalive = socket2::TcpKeepalive::new().with_time(TCP_ALIVE).with_interval(TCP_ALIVE / 4);
        return socket.set_tcp_keepalive(&keepalive);
    };
    let patience =
        interval.saturating_mul(u32::try_from(ssh.client_alive_count_max).unwrap_or(u32::MAX).saturating_add(1));
    let keepalive =
        socket2::TcpKeepalive::new().with_time(interval).with_interval(interval.min(Duration::from_secs(15)));
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(patience.min(Duration::from_hours(24))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_noticed_by_the_socket() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
        let seconds = Duration::from_secs;
        let with = |client_alive_interval| SshConfig { client_alive_interval, ..SshConfig::default() };
        let socket = socket2::SockRef::from(&stream);
        socket_options(&stream, &with(None)).expect("sets");
        assert!(socket.keepalive().expect("reads") && socket.tcp_nodelay().expect("reads"));
        assert_eq!(socket.tcp_keepalive_time().expect("reads"), seconds(60));
        assert_eq!(
            socket.tcp_user_timeout().expect("reads"),
            None,
            "a stopped client is not cut where nobody asked for it"
        );
        socket_options(&stream, &with(Some(seconds(20)))).expect("sets");
        assert_eq!(socket.tcp_keepalive_time().expect("reads"), seconds(20));
        assert_eq!(socket.tcp_user_timeout().expect("reads"), Some(seconds(80)), "three keepalives, unanswered");
    }
}
