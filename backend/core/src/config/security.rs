//! `security` as a configuration says it: read into [`Security`], and checked.

use crate::policy::{Forcer, Forwarding, MAX_FORCED, Mode, Most, Rule, Security};
use podbay_runtime::config::Section;
use std::{num::NonZeroU32, time::Duration};

/// The most entries of one list, and bytes of all of one: a policy goes into every handle (64 KiB).
const MAX_LIST: (usize, usize) = (1000, 16 * 1024);

impl Security {
    /// Reads the section; what is not there stays unset, so that the result can be laid over another ([`Self::merged`]).
    pub fn read(section: &mut Section) -> Self {
        let force_command: String = section.or("forceCommand", String::new());
        if force_command.len() > MAX_FORCED || force_command.contains('\0') {
            section.mistake("forceCommand", "must be at most 16 KiB without NUL");
        } else if !force_command.is_empty() && force_command.trim().is_empty() {
            section.mistake("forceCommand", "is blank: write a command, or \"\" for none");
        }
        let max = section.or("maxSessions", 0_i64);
        let most = match u32::try_from(max) {
            // ContainerSSH's reader, too, takes 0 for what is not set.
            Ok(max) => NonZeroU32::new(max).map(Most::Sessions),
            Err(_) if max == -1 => Some(Most::Unlimited),
            Err(_) => {
                section.mistake("maxSessions", "must be -1 (no limit) or a positive number");
                None
            }
        };
        Self {
            default_mode: mode(section, "defaultMode"),
            force_command,
            forced_by: Forcer::Policy,
            env: rule(&mut section.section("env")),
            command: command(&mut section.section("command")),
            shell: mode(&mut section.section("shell"), "mode"),
            subsystem: rule(&mut section.section("subsystem")),
            tty: mode(&mut section.section("tty"), "mode"),
            signal: signals(&mut section.section("signal")),
            forwarding: forwarding(&mut section.section("forwarding")),
            most,
            max_session_time: time(section, "maxSessionTime"),
            idle_timeout: time(section, "idleTimeout"),
        }
    }
}

fn mode(section: &mut Section, key: &str) -> Option<Mode> {
    match section.get::<String>(key)?.as_str() {
        "" => None,
        "enable" => Some(Mode::Enable),
        "filter" => Some(Mode::Filter),
        "disable" => Some(Mode::Disable),
        _ => {
            section.mistake(key, "must be enable, filter or disable (or \"\": not set)");
            None
        }
    }
}

fn list(section: &mut Section, key: &str) -> Vec<String> {
    let list: Vec<String> = section.or(key, Vec::new());
    let (entries, bytes) = MAX_LIST;
    if list.len() > entries || list.iter().map(String::len).sum::<usize>() > bytes {
        section.mistake(key, format!("has at most {entries} entries and {bytes} bytes"));
    }
    list
}

fn rule(section: &mut Section) -> Rule {
    Rule { mode: mode(section, "mode"), allow: list(section, "allow"), deny: list(section, "deny") }
}

fn command(section: &mut Section) -> Rule {
    section.refuse(
        "deny",
        "commands have no list of what is denied (a shell runs the same by many lines): use mode: filter and allow",
    );
    Rule { mode: mode(section, "mode"), allow: list(section, "allow"), deny: Vec::new() }
}

fn signals(section: &mut Section) -> Rule {
    let rule = rule(section);
    for (key, list) in [("allow", &rule.allow), ("deny", &rule.deny)] {
        if list.iter().any(|name| name.starts_with("SIG")) {
            section.mistake(key, "names of signals are written without SIG, as TERM");
        }
    }
    rule
}

fn forwarding(section: &mut Section) -> Forwarding {
    let read = Forwarding {
        reverse: mode(section, "reverseForwardingMode"),
        direct: mode(section, "forwardingMode"),
        socket: mode(section, "socketForwardingMode"),
        socket_listen: mode(section, "socketListenMode"),
        x11: mode(section, "x11ForwardingMode"),
    };
    for (key, mode) in read.keyed() {
        match mode {
            Some(Mode::Enable) => section.mistake(key, "forwarding is not built: use disable (which is the default)"),
            None | Some(Mode::Filter | Mode::Disable) => {}
        }
    }
    read
}

/// At least a second: less is a number without its unit, which ContainerSSH counts in nanoseconds.
fn time(section: &mut Section, key: &str) -> Duration {
    let time = section.or(key, Duration::ZERO);
    if !time.is_zero() && time < Duration::from_secs(1) {
        section.mistake(key, "must be 0 (no limit) or at least 1s, with its unit, as 30m");
    }
    time
}
