//! The command line of `supervise`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

/// How a supervisor runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The socket; `None` = [`super::socket::places`].
    pub socket: Option<PathBuf>,
    /// Ends once its first program is forgotten, with that one's exit code.
    pub session: bool,
    /// Where the exit of a session's program is written for the kubelet (`terminationMessagePath`).
    pub termination_log: PathBuf,
    /// Started by `attach --spawn`: in a session of its own, ends when it was idle for long.
    pub detached: bool,
    /// How long a program may run without a link where its Start does not say.
    pub orphan_timeout: Duration,
    /// How long an exit is kept without a link.
    pub exit_retention: Duration,
    /// After a program with pipes ended: how long its outputs may be open and silent (who has them open is in the background).
    pub drain_pipes: Duration,
    /// The same for a terminal.
    pub drain_terminal: Duration,
    /// Bytes that all windows share; `None` = by the container's limit.
    pub memory: Option<usize>,
    /// Programs at once.
    pub max_programs: usize,
    /// Where output is spilled; `None` = beside the socket, or in the folder for temporary files.
    pub spill_dir: Option<PathBuf>,
    /// Runs as long as the container; empty = the supervisor idles by itself.
    pub idle: Vec<OsString>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: None,
            session: false,
            termination_log: "/dev/termination-log".into(),
            detached: false,
            orphan_timeout: Duration::from_mins(10),
            exit_retention: Duration::from_hours(1),
            drain_pipes: Duration::from_mins(1),
            drain_terminal: Duration::from_secs(1),
            memory: None,
            max_programs: 256,
            spill_dir: None,
            idle: Vec::new(),
        }
    }
}

/// Usage, for the message of a mistake.
pub const USAGE: &str = "\
Usage: podbay-agent supervise [OPTIONS] [-- PROGRAM [ARG]...]
  --socket PATH             listen there
  --session                 end with the first program, and as it did
  --termination-log PATH    write that program's end there
  --orphan-timeout SECONDS  end a program that has no link for so long [600]
  --exit-retention SECONDS  keep an exit that nobody collects [3600]
  --drain-pipes SECONDS     wait for silent pipes of a program that ended [60]
  --drain-terminal SECONDS  the same for a terminal [1]
  --memory BYTES            for all windows [an eighth of the container's]
  --max-programs N          at once [256]
  --spill-dir PATH          for output that is kept in files";

impl Options {
    /// From what follows the command's name.
    ///
    /// # Errors
    /// A sentence for the person who typed it.
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(option) = args.next() {
            let Some(name) = option.to_str() else { return Err(format!("unknown option {}", option.display())) };
            match name {
                "--" => {
                    options.idle = args.collect();
                    return Ok(options);
                }
                "--session" => options.session = true,
                "--detached" => options.detached = true,
                "--socket" => options.socket = Some(value(name, &mut args)?.into()),
                "--termination-log" => options.termination_log = value(name, &mut args)?.into(),
                "--spill-dir" => options.spill_dir = Some(value(name, &mut args)?.into()),
                "--orphan-timeout" => options.orphan_timeout = Duration::from_secs(number(name, &mut args)?),
                "--exit-retention" => options.exit_retention = Duration::from_secs(number(name, &mut args)?),
                "--drain-pipes" => options.drain_pipes = Duration::from_secs(number(name, &mut args)?),
                "--drain-terminal" => options.drain_terminal = Duration::from_secs(number(name, &mut args)?),
                "--memory" => options.memory = Some(number(name, &mut args)? as usize),
                "--max-programs" => options.max_programs = number(name, &mut args)? as usize,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }
}

fn value(name: &str, args: &mut impl Iterator<Item = OsString>) -> Result<OsString, String> {
    args.next().filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} needs a value"))
}

/// At most ten years in seconds, or as many bytes: so that no sum overflows.
fn number(name: &str, args: &mut impl Iterator<Item = OsString>) -> Result<u64, String> {
    let value = value(name, args)?;
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=400_000_000).contains(number));
    number.ok_or_else(|| format!("{name} needs a number from 1 to 400000000, not {}", value.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn options_stand_before_the_idle_command() {
        let options = parse(&["--session", "--socket", "/a", "--drain-pipes", "3", "--", "sleep", "--session"]);
        let options = options.expect("good");
        assert!(options.session);
        assert_eq!((options.socket, options.drain_pipes), (Some("/a".into()), Duration::from_secs(3)));
        assert_eq!(options.idle, ["sleep", "--session"]);
        assert_eq!(parse(&[]), Ok(Options::default()));
        assert_eq!(parse(&["--"]), Ok(Options::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for args in [&["sleep"][..], &["--socket"], &["--socket", ""], &["--memory", "x"], &["--memory", "0"], &["-x"]]
        {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
