//! How a program's end is passed on.

use super::{FAILED, say};
use podbay::v1::{self, exit::End};

/// Linux's numbers, in the pod whatever this machine's are.
const SIGNALS: [(&str, u8); 16] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("SYS", 31),
];

/// The exit status to pass on, with what to say of it: a signal's is 128 + n, as shells say; 255 where it is not known.
pub fn status_of(exit: &v1::Exit) -> (u8, String) {
    match &exit.end {
        Some(End::Code(code)) => (u8::try_from(*code).unwrap_or(FAILED), String::new()),
        Some(End::Signal(end)) => {
            let number = SIGNALS.iter().find(|(name, _)| *name == end.name).map_or(127, |(_, number)| *number);
            let core = if end.core_dumped { " (core dumped)" } else { "" };
            (128 + number, format!("ended by signal {}{core} {}", end.name, end.message).trim_end().to_owned())
        }
        Some(End::Lost(refusal)) => (FAILED, refusal.message.clone()),
        None => (FAILED, "the backend does not say how the program ended".to_owned()),
    }
}

/// Says it, and gives the status.
pub fn passed_on(exit: &v1::Exit) -> u8 {
    let (status, words) = status_of(exit);
    if !words.is_empty() {
        say(words);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_the_programs_or_says_why_not() {
        let of = |end| status_of(&v1::Exit { end });
        let signal = |name: &str, core_dumped| {
            of(Some(End::Signal(v1::ExitSignal { name: name.into(), core_dumped, message: String::new() })))
        };
        assert_eq!(of(Some(End::Code(0))), (0, String::new()));
        assert_eq!(of(Some(End::Code(254))), (254, String::new()));
        assert_eq!(of(Some(End::Code(256))).0, FAILED);
        assert_eq!(signal("TERM", false), (143, "ended by signal TERM".to_owned()));
        assert_eq!(signal("SEGV", true), (139, "ended by signal SEGV (core dumped)".to_owned()));
        assert_eq!(signal("RTMIN", false).0, FAILED, "no number that could be mistaken for another signal's");
        assert_eq!(of(None).0, FAILED);
        let lost = v1::Refusal { message: "the node is gone".into(), ..v1::Refusal::default() };
        assert_eq!(of(Some(End::Lost(lost))), (FAILED, "the node is gone".to_owned()));
    }
}
