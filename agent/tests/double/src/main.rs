//! `containerssh-agent-double`: behaves as ContainerSSH's agent 0.10 does, quirks included, written from a description of its
//! behaviour and not from its code. For tests: the backend's, and those that hold our own agent against it.
//!
//! Left out: `forward-server`. Not known, and so not imitated: the words of its texts.

use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, execve},
};
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    process::{self, ExitCode},
    sync::{Arc, atomic::AtomicBool},
};

const USAGE: &str =
    "Usage: containerssh-agent MODE [OPTIONS]\nModes: console signal wait-signal write-file forward-server license\n";
const SIGNALS: [(&str, Signal); 13] = [
    ("ABRT", Signal::SIGABRT),
    ("ALRM", Signal::SIGALRM),
    ("FPE", Signal::SIGFPE),
    ("HUP", Signal::SIGHUP),
    ("ILL", Signal::SIGILL),
    ("INT", Signal::SIGINT),
    ("KILL", Signal::SIGKILL),
    ("PIPE", Signal::SIGPIPE),
    ("QUIT", Signal::SIGQUIT),
    ("SEGV", Signal::SIGSEGV),
    ("TERM", Signal::SIGTERM),
    ("USR1", Signal::SIGUSR1),
    ("USR2", Signal::SIGUSR2),
];

/// An exit code, and whether the usage text goes to stdout.
enum End {
    Code(u8),
    Usage(String),
}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let end = match args.next().as_ref().and_then(|mode| mode.to_str()) {
        Some("console") => console(args),
        Some("signal") => signal(args),
        Some("wait-signal") => wait_signal(args),
        Some("write-file") => write_file(args),
        Some("forward-server") => {
            eprintln!("Error: this double does not forward");
            Ok(1)
        }
        Some("license") => Ok(say("Licence\n")),
        Some("-h" | "--help") => Ok(say(USAGE)),
        _ => Err(End::Usage("invalid mode".into())),
    };
    match end {
        Ok(code) | Err(End::Code(code)) => code.into(),
        Err(End::Usage(reason)) => {
            eprintln!("Error: {reason}");
            // Quirk: where the backend expects a process id.
            print!("{USAGE}");
            1.into()
        }
    }
}

fn say(text: &str) -> u8 {
    print!("{text}");
    0
}

fn usage(reason: &str) -> End {
    End::Usage(reason.into())
}

fn console(mut args: impl Iterator<Item = OsString>) -> Result<u8, End> {
    // Quirk: an older entry of the same name stays, before the new one.
    let mut environment: Vec<CString> = env::vars_os()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let (mut wait, mut pid) = (false, false);
    loop {
        let Some(option) = args.next() else {
            eprintln!("panic: runtime error: index out of range");
            return Ok(2);
        };
        match option.to_str() {
            Some("--") => break,
            Some("--wait") => wait = true,
            Some("--pid") => pid = true,
            Some("--env") => {
                let variable = args.next().ok_or_else(|| usage("--env requires an argument"))?;
                if variable.as_bytes().starts_with(b"--") || !variable.as_bytes().contains(&b'=') {
                    return Err(usage("invalid --env"));
                }
                environment.push(CString::new(variable.as_bytes()).map_err(|_| End::Code(1))?);
            }
            _ => return Err(usage("invalid option")),
        }
    }
    let argv: Vec<CString> = args.filter_map(|arg| CString::new(arg.as_bytes()).ok()).collect();
    let program = argv.first().ok_or_else(|| usage("no program"))?;
    if wait {
        let mut byte = [1];
        // Unbuffered: the rest is the program's.
        match nix::unistd::read(io::stdin().as_fd(), &mut byte) {
            Ok(1) if matches!(byte, [0 | b'\n']) => {}
            _ => {
                eprintln!("Error: no start byte");
                return Ok(2);
            }
        }
    }
    if pid && nix::unistd::write(io::stdout(), &process::id().to_le_bytes()) != Ok(4) {
        eprintln!("Error: the process id could not be written");
        return Ok(3);
    }
    // What is caught goes back to the default at the exec; Rust's runtime had it ignored, Go's has not.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::new(AtomicBool::new(false)));
    let Err(error) = execve(program, &argv, &environment);
    eprint!("{}", error.desc());
    Ok(127)
}

fn by_name(name: &OsStr) -> Option<Signal> {
    SIGNALS.iter().find(|(known, _)| *known == name).map(|&(_, signal)| signal)
}

fn signal(mut args: impl Iterator<Item = OsString>) -> Result<u8, End> {
    let (mut pid, mut signal) = (None, None);
    while let Some(option) = args.next() {
        let mut argument = || args.next().ok_or_else(|| usage("an argument is missing"));
        match option.to_str() {
            Some("--pid") => {
                let number =
                    argument()?.to_str().and_then(|text| text.parse::<i32>().ok()).filter(|&number| number >= 1);
                if pid.replace(number.ok_or_else(|| usage("invalid PID"))?).is_some() {
                    return Err(usage("duplicate --pid"));
                }
            }
            Some("--signal") => signal = Some(by_name(&argument()?).ok_or_else(|| usage("invalid signal"))?),
            _ => return Err(usage("invalid option")),
        }
    }
    let (Some(pid), Some(signal)) = (pid, signal) else { return Err(usage("--pid and --signal are required")) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) => Ok(0),
        Err(error) => {
            eprintln!("Error: {error}");
            Ok(3)
        }
    }
}

fn wait_signal(mut args: impl Iterator<Item = OsString>) -> Result<u8, End> {
    let (mut set, mut some, mut message) = (SigSet::empty(), false, None);
    while let Some(option) = args.next() {
        let mut argument = || args.next().ok_or_else(|| usage("an argument is missing"));
        match option.to_str() {
            Some("--signal") => {
                set.add(by_name(&argument()?).ok_or_else(|| usage("invalid signal"))?);
                some = true;
            }
            Some("--message") => {
                if message.replace(argument()?).is_some() {
                    return Err(usage("duplicate --message"));
                }
            }
            _ => return Err(usage("invalid option")),
        }
    }
    if !some {
        return Err(usage("no signals"));
    }
    // Quirk: children that come to it are never reaped.
    let waited = set.thread_block().and_then(|()| set.wait());
    waited.map_err(|_: Errno| End::Code(2))?;
    let _ = io::stdout().write_all(message.unwrap_or_default().as_bytes());
    let _ = io::stdout().flush();
    Ok(0)
}

fn write_file(mut args: impl Iterator<Item = OsString>) -> Result<u8, End> {
    let path = args.next().ok_or_else(|| usage("no path"))?;
    let failed = |error: io::Error| {
        eprintln!("Error: {error}");
        End::Code(1)
    };
    // Quirk: in place, so a reader sees a part.
    let mut file = File::create(&path).map_err(failed)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    let mut buffer = [0; 4096];
    loop {
        // Quirk: any read error is an end, and all is well.
        match io::stdin().read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(0),
            Ok(n) => file.write_all(&buffer[..n]).map_err(failed)?,
        }
    }
}
