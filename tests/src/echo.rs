//! Bytes that go through a program and back while things break.

use super::{World, bytes, sha256};
use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdout, Stdio},
    thread,
};

/// Bytes on their way through `cat` in the pod and back, in pieces that the test doles out: between them it breaks things.
#[derive(Debug)]
pub struct Loop {
    client: Child,
    stdout: ChildStdout,
    data: Vec<u8>,
    sent: usize,
    back: Vec<u8>,
}

impl Loop {
    /// Starts `cat` in the pod, for so many bytes in all.
    pub fn start(world: &World, total: usize) -> Self {
        let mut ssh = world.ssh(&[]);
        let mut client = ssh
            .arg("cat; exit 7")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdout = client.stdout.take().expect("piped");
        Self { client, stdout, data: bytes(total), sent: 0, back: Vec::new() }
    }

    /// Sends so many more, and reads as many.
    #[track_caller]
    pub fn goes_on(&mut self, len: usize) {
        let piece = self.data[self.sent..self.sent + len].to_vec();
        self.sent += len;
        let mut stdin = self.client.stdin.take().expect("open");
        let writer = thread::spawn(move || {
            stdin.write_all(&piece).expect("takes all");
            stdin
        });
        let mut back = vec![0; len];
        self.stdout.read_exact(&mut back).expect("comes back");
        self.back.extend_from_slice(&back);
        self.client.stdin = Some(writer.join().expect("no panic"));
    }

    /// Sends the rest, ends, and every byte has come back once; nothing was told to the user, but for a wait of more than 5 s, and its end.
    #[track_caller]
    pub fn ends_whole(mut self) {
        self.goes_on(self.data.len() - self.sent);
        drop(self.client.stdin.take());
        self.stdout.read_to_end(&mut self.back).expect("ends");
        let output = self.client.wait_with_output().expect("ends");
        assert_eq!((self.back.len(), sha256(&self.back)), (self.data.len(), sha256(&self.data)));
        let told = String::from_utf8_lossy(&output.stderr);
        let (waits, other): (Vec<_>, Vec<_>) = told.lines().partition(|line| {
            line.starts_with("podbay: the connection to the pod broke and the program runs on: waiting for ")
        });
        let (ends, other): (Vec<_>, Vec<_>) =
            other.into_iter().partition(|line| *line == "podbay: the connection to the pod is there again");
        assert_eq!((output.status.code(), other, waits.len()), (Some(7), Vec::new(), ends.len()), "{told}");
    }
}
