//! The end of a program that its client left, where no agent ends it and the pod lives on (mode `persistent`).
//!
//! Closing an exec's stream ends nothing: the runtime lets the program run. The wrapper carries a random word among its
//! arguments; a second exec finds it by that in /proc and sends HUP, TERM and KILL, five seconds apart, to its process group, to the
//! program's (an interactive shell makes itself one) and to the terminal's foreground. What is in the background there (`nohup … &`
//! of an interactive shell) or in a session of its own (`setsid`) lives on, as with sshd.

use crate::{
    cluster::{Cluster, ClusterError, Output, PodRef, StreamEnd, StreamRequest},
    failure::short,
    lifecycle::Backoff,
    wrapper::{Nonce, SHELL},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

const SCRIPT: &str = include_str!("leftover.sh");

/// What the script needs at most, once it runs: three times five seconds, and a little.
const TAKES: Duration = Duration::from_secs(20);

/// A program that somebody has to end.
#[derive(Debug, Clone)]
pub(super) struct Leftover {
    pub cluster: Arc<dyn Cluster>,
    pub pod: PodRef,
    pub container: String,
    pub nonce: Nonce,
}

impl Leftover {
    /// Ends it; an API that does not answer is asked again for `bound`.
    pub async fn end(self, bound: Duration) {
        let until = Instant::now() + bound;
        let mut backoff = Backoff::default();
        loop {
            let error = match timeout(bound + TAKES, self.try_end()).await {
                Ok(Ok(())) | Err(_) => return,
                Ok(Err(error)) => error,
            };
            let gone = matches!(error, ClusterError::NotFound { .. });
            let pause = backoff.next(None);
            if gone || Instant::now() + pause >= until {
                tracing::debug!(pod = self.pod.name, %error, "a program that its client left is not ended");
                return;
            }
            sleep(pause).await;
        }
    }

    async fn try_end(&self) -> Result<(), ClusterError> {
        let command = Some(command(&self.nonce));
        let request = StreamRequest { container: self.container.clone(), command, tty: false, stdin: false };
        let mut streams = self.cluster.stream(&self.pod, &request).await?;
        loop {
            match streams.output.recv().await {
                Some(Output::Stdout(_) | Output::Stderr(_)) => {}
                Some(Output::End(StreamEnd::Lost(message))) => {
                    return Err(ClusterError::Unavailable { message, retry_after: None });
                }
                Some(Output::End(StreamEnd::Failed { message, .. })) => {
                    tracing::debug!(pod = self.pod.name, why = short(&message), "a left program can't be ended");
                    return Ok(());
                }
                Some(Output::End(StreamEnd::Success | StreamEnd::ExitCode(_))) | None => return Ok(()),
            }
        }
    }
}

/// The word in two parts and the wrong way round: else the script would find itself.
fn command(nonce: &Nonce) -> Vec<String> {
    let (first, second) = nonce.halves();
    [SHELL, "-c", SCRIPT, "podbay-end", second, first].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wrapper::{Program, for_exec};
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        os::unix::process::{CommandExt as _, ExitStatusExt as _},
        process::{Child, Command, ExitStatus, Stdio},
    };

    /// As a runtime starts an exec: with a process group of its own.
    fn started(nonce: &Nonce, program: &str) -> (Child, String) {
        let argv = ["/bin/sh", "-c", program].map(str::to_owned);
        let wrapped = for_exec(Program { argv: &argv, environment: &[], size: None }, nonce).expect("wrapped");
        let (name, args) = wrapped.command.split_first().expect("a program");
        let mut child = Command::new(name)
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("runs");
        (child, line)
    }

    /// Ends it, and reaps it meanwhile, as a runtime does. Gives its last words, too.
    fn end(nonce: &Nonce, mut child: Child) -> (ExitStatus, String) {
        let command = command(nonce);
        let (name, args) = command.split_first().expect("a program");
        let mut script = Command::new(name).args(args).spawn().expect("starts");
        let mut rest = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut rest).expect("reads");
        let status = child.wait().expect("ended");
        assert!(script.wait().expect("ended").success());
        (status, rest)
    }

    #[test]
    fn a_program_is_found_by_its_word_and_ended_and_nobody_elses_is() {
        let (nonce, other) = (Nonce::new(rand::random()), Nonce::new(rand::random()));
        let program = "exec 2>/dev/null; trap 'echo hup; exit 3' HUP; echo up; while :; do sleep 0.1; done";
        let (child, line) = started(&nonce, program);
        assert!(line.ends_with("up\n"), "{line:?}");
        let (mut bystander, _) = started(&other, "echo up; exec sleep 1000");
        let (status, rest) = end(&nonce, child);
        assert!(rest.starts_with("hup\n"), "{rest:?}");
        assert_eq!(status.code(), Some(3));
        assert!(bystander.try_wait().expect("asks").is_none());
        let (status, _) = end(&other, bystander);
        assert!(!status.success());
    }

    /// On a terminal an interactive shell is in a group of its own, and each of its jobs in another: none of them the wrapper's.
    #[test]
    fn an_interactive_shell_goes_with_its_foreground_and_not_with_its_background() {
        let nonce = Nonce::new(rand::random());
        let background = format!("/tmp/podbay-{}", hex::encode(rand::random::<[u8; 8]>()));
        // The shell and its foreground heed KILL only; what is in the background is told nothing.
        let shell = format!(
            "set -m; trap '' HUP TERM; sleep 987654 & echo $! >{background}; \
             sh -c 'echo $PPID $$; while :; do sleep 0.1; done'; sleep 987654"
        );
        let argv = ["/bin/sh", "-c", &shell].map(str::to_owned);
        let wrapped = for_exec(Program { argv: &argv, environment: &[], size: None }, &nonce).expect("wrapped");
        let quoted: Vec<String> =
            wrapped.command.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        // `script` makes the terminal, and the session of which the wrapper is the leader. It must not have the word itself.
        let mut user = Command::new("script")
            .args(["-q", "-c", r#"eval "exec $WRAPPED""#, "/dev/null"])
            .env("WRAPPED", quoted.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(user.stdout.as_mut().expect("piped")).lines();
        let pids = lines.find_map(|line| {
            let line = line.expect("reads");
            // The wrapper's word stands before it.
            let line = line.rsplit('.').next().unwrap_or_default();
            let words: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            (words.len() == 2).then_some(words)
        });
        let pids = pids.expect("it runs");
        let command = command(&nonce);
        let (name, args) = command.split_first().expect("a program");
        assert!(Command::new(name).args(args).status().expect("runs").success());
        let alive = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        assert!(!pids.iter().any(|pid| alive(*pid)), "{pids:?}");
        let text = std::fs::read_to_string(&background).expect("reads");
        let background_pid: u32 = text.trim().parse().expect("a pid");
        assert!(alive(background_pid));
        std::fs::remove_file(&background).expect("removes");
        let _ = Command::new("kill").args(["-9", &background_pid.to_string()]).status();
        let _ = user.kill();
        user.wait().expect("ended");
    }

    #[test]
    fn one_that_ignores_what_it_can_is_killed() {
        let nonce = Nonce::new(rand::random());
        let (child, _) = started(&nonce, "trap '' HUP TERM; echo up; while :; do sleep 0.1; done");
        let (status, _) = end(&nonce, child);
        assert_eq!(status.signal(), Some(9), "{status:?}");
    }
}
