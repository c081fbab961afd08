//! One connection that several commands share, by the stock client's `ControlMaster`.

use super::{
    World,
    process::{Answered, finish, wait_until},
};
use std::{
    path::PathBuf,
    process::{Child, Command},
};

/// The shared connection. It ends with this.
#[derive(Debug)]
pub struct Master<'a> {
    world: &'a World,
    option: String,
    child: Child,
}

impl<'a> Master<'a> {
    /// Logs in, and waits until commands can share the connection.
    pub fn start(world: &'a World) -> Self {
        let control = world.file(&format!("control-{}", world.unique()));
        let option = format!("ControlPath={}", control.display());
        let child = world.ssh(&["-o", &option, "-o", "ControlMaster=yes", "-N"]).spawn().expect("starts");
        wait_until("the connection is up", || control.exists());
        Self { world, option, child }
    }

    /// The stock client over the connection, with these arguments before the host.
    pub fn ssh(&self, options: &[&str]) -> Command {
        let mut all = vec!["-o", &self.option];
        all.extend(options);
        self.world.ssh(&all)
    }

    /// A client's configuration by which any tool shares the connection, host `demo`.
    pub fn config(&self) -> PathBuf {
        let path = self.world.file(&format!("config-{}", self.world.unique()));
        let control = self.option.replace('=', " ");
        let text = format!("Include {}\nHost demo\n    {control}\n", self.world.ssh_config().display());
        std::fs::write(&path, text).expect("writes");
        path
    }

    /// Runs a command, with this on its stdin.
    #[track_caller]
    pub fn run(&self, command: &str, stdin: &[u8]) -> Answered {
        finish(self.ssh(&[]).arg(command), stdin)
    }

    /// Ends the connection as a client does that logs out.
    pub fn ends(mut self) {
        let config = self.world.ssh_config();
        let exit = Command::new("ssh").args(["-o", &self.option, "-O", "exit", "-F"]).arg(config).arg("demo").output();
        assert!(exit.expect("runs").status.success());
        self.child.wait().expect("ends");
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
