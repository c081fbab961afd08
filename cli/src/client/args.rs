//! The command line.

use super::{server::Server, store::Store};
use anyhow::Context as _;
use podbay::v1::{self, output_when_detached::Mode};
use std::{path::PathBuf, time::Duration};

/// For whom, and what is remembered where.
#[derive(Debug, clap::Args)]
pub struct Who {
    /// The user whose sessions these are [default: $USER]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Where the handles of sessions are kept, one private file each
    /// [default: $XDG_STATE_HOME/podbay, else ~/.local/state/podbay]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Who {
    /// The user's name.
    pub fn name(&self) -> anyhow::Result<String> {
        let user = self.user.clone().or_else(|| std::env::var("USER").ok()).filter(|user| !user.is_empty());
        user.context("for whom? USER is not set: give --user NAME")
    }

    /// What is remembered.
    pub fn store(&self) -> anyhow::Result<Store> {
        Store::open(self.state_dir.clone())
    }
}

/// How a new session runs.
#[derive(Debug, clap::Args)]
pub struct How {
    /// A variable of the program's environment; may be repeated. security.env may refuse it
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub server: Server,
}

/// `podbay run`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub struct Run {
    /// Let it run alone: print its session's id, once it runs, and end. Its stdin is empty
    #[arg(long, short, conflicts_with = "tty")]
    pub detach: bool,
    /// With --detach: how long the session and then its exit are kept, for example 90m or 24h; at most
    /// ownership.maxKeep of the backend's configuration, which is also the default
    #[arg(long, value_name = "TIME", requires = "detach", value_parser = time)]
    pub keep: Option<Duration>,
    /// What happens to output while nobody takes it: `block` (the program waits), `keep-last` (the end of it is kept) or
    /// `spill=BYTES` (a file in the pod; then it waits) [default: block; with --detach spill=1073741824]
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    pub output: Option<v1::OutputWhenDetached>,
    /// Give it a terminal, where stdin is one. Then ^C is a key like others, and stderr comes with stdout
    #[arg(long, short)]
    pub tty: bool,
    #[command(flatten)]
    pub how: How,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

const RUN_EXAMPLES: &str = "\
Examples:
  podbay run --server grpc.env -- make test                  # here, with its exit status
  podbay run --server grpc.env -- sh -c 'cat >f' <data       # stdin goes to it
  id=$(podbay run --server grpc.env --detach --keep 24h -- ./train.sh)
  podbay attach --server grpc.env \"$id\"                      # its output so far, the rest, its exit status
";

/// `podbay shell`.
#[derive(Debug, clap::Args)]
pub struct Shell {
    #[command(flatten)]
    pub how: How,
}

/// `podbay attach`.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The session's id, or the beginning of it: `podbay run --detach` prints it, `podbay sessions` lists them
    pub id: String,
    /// How long it is kept if this is told to leave it, for example 90m or 24h [default: what the backend allows]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub keep: Option<Duration>,
    /// Send this process's stdin to the program
    #[arg(long, short)]
    pub interactive: bool,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub server: Server,
}

/// `podbay sessions`.
#[derive(Debug, clap::Args)]
pub struct Sessions {
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub server: Server,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "not a time such as 90m or 24h")?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("not a time such as 90m or 24h".to_owned()),
    };
    number.checked_mul(seconds).filter(|it| *it > 0).map(Duration::from_secs).ok_or("out of range".to_owned())
}

fn policy(text: &str) -> Result<v1::OutputWhenDetached, String> {
    let simple = |mode: Mode| v1::OutputWhenDetached { mode: mode.into(), ..v1::OutputWhenDetached::default() };
    match text.split_once('=') {
        None if text == "block" => Ok(simple(Mode::Block)),
        None if text == "keep-last" => Ok(simple(Mode::KeepLast)),
        Some(("spill", bytes)) => {
            let max_bytes = bytes.parse().ok().filter(|bytes| *bytes > 0).ok_or("spill=BYTES: a number above 0")?;
            Ok(v1::OutputWhenDetached { max_bytes, then: Mode::Block.into(), ..simple(Mode::Spill) })
        }
        _ => Err("block, keep-last or spill=BYTES".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_the_command_line() {
        assert_eq!(time("90m"), Ok(Duration::from_mins(90)));
        for bad in ["", "5", "m", "0s", "1w", "99999999999999999999s", "9999999999999999999d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(policy("spill=5").map(|p| (p.mode(), p.max_bytes, p.then())), Ok((Mode::Spill, 5, Mode::Block)));
        for bad in ["", "spill", "spill=0", "spill=x", "keep", "block=1"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        for bad in ["", "A", "=b"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }
}
