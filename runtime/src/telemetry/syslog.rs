//! Syslog as ContainerSSH writes it, in the manner of RFC 3164.

use super::Severity;
use crate::config::Section;
use jiff::Zoned;
use std::{
    io::{self, Write as _},
    net::UdpSocket,
    os::unix::net::{UnixDatagram, UnixStream},
    time::Duration,
};

/// A server that reads nothing holds a line up for so long; then stderr gets it.
const PATIENCE: Duration = Duration::from_millis(200);

/// In the order of their numbers (RFC 5424 section 6.2.1), under ContainerSSH's names.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "logaudit", "logalert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// `log.syslog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syslog {
    /// A Unix socket's path, or `host:port` for UDP.
    pub destination: String,
    /// 0 to 23.
    pub facility: u8,
    /// Before each message.
    pub tag: String,
    /// The process's number behind the tag.
    pub pid: bool,
}

impl Syslog {
    pub(super) fn from_section(section: &mut Section) -> Self {
        let destination = section.filled("destination", "/dev/log".to_owned());
        let is_udp = destination
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !destination.starts_with('/') && !is_udp {
            section.mistake("destination", "must be the path of a Unix socket, or host:port for UDP");
        }
        let numbered = FACILITIES.iter().zip(0_u8..);
        let words: Vec<(&'static str, u8)> = numbered.map(|(name, number)| (*name, number)).collect();
        let facility = section.word("facility", &words, "auth").unwrap_or_default();
        let tag = section.filled("tag", "ContainerSSH".to_owned());
        if tag.len() > 48 || !tag.chars().all(|c| c.is_ascii_graphic() && ![':', '[', ']'].contains(&c)) {
            section.mistake("tag", "must be at most 48 letters, digits and signs, without : [ ] and blanks");
        }
        Self { destination, facility, tag, pid: section.or("pid", false) }
    }
}

/// `<PRI>Mon D HH:MM:SS TAG: message`.
pub(super) fn frame(syslog: &Syslog, severity: Severity, now: &Zoned, message: &str) -> String {
    let priority = u32::from(syslog.facility) * 8 + severity as u32;
    let pid = if syslog.pid { format!("[{}]", std::process::id()) } else { String::new() };
    format!("<{priority}>{} {}{pid}: {message}\n", now.strftime("%b %e %H:%M:%S"), syslog.tag)
}

/// A connection to a server.
#[derive(Debug)]
pub(super) enum Wire {
    Stream(UnixStream),
    Datagram(UnixDatagram),
    Udp(UdpSocket),
}

impl Wire {
    /// # Errors
    /// Nobody listens there. (Over UDP that is not known; the name may not.)
    pub fn connect(to: &str) -> io::Result<Self> {
        if !to.starts_with('/') {
            let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
            // A socket of the other family can't reach it.
            let socket = socket.connect(to).map(|()| socket).or_else(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(to).map(|()| socket)
            })?;
            socket.set_write_timeout(Some(PATIENCE))?;
            return Ok(Self::Udp(socket));
        }
        if let Ok(stream) = UnixStream::connect(to) {
            stream.set_write_timeout(Some(PATIENCE))?;
            return Ok(Self::Stream(stream));
        }
        let socket = UnixDatagram::unbound()?;
        socket.connect(to)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::Datagram(socket))
    }

    /// # Errors
    /// Not sent. A stream that took half of it must not be used again.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(bytes),
            Self::Datagram(socket) => socket.send(bytes).map(drop),
            Self::Udp(socket) => socket.send(bytes).map(drop),
        }
    }
}
