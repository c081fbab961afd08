//! The commands that containerssh-agent does not have.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

fn agent(args: &[&str]) -> Output {
    Command::new(podbay_agent_embed::BUILT_AT).args(args).output().expect("runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn it_is_one_static_file_of_the_promised_size() {
    assert_eq!(fs::read(podbay_agent_embed::BUILT_AT).expect("readable"), podbay_agent_embed::BINARY);
    // The aim: under 2 MiB.
    assert!(podbay_agent_embed::BINARY.len() < 2 << 20, "{}", podbay_agent_embed::BINARY.len());
    // A program that asks for a loader names it, and there is nothing else in it of that name.
    let loader = podbay_agent_embed::BINARY.windows(6).any(|bytes| bytes == b"/ld-li" || bytes == b"/ld-mu");
    assert!(!loader, "not static");
}

#[test]
fn the_version_and_the_help_are_told() {
    let version = agent(&["version"]);
    assert_eq!(text(&version.stdout), concat!("podbay-agent ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = agent(&["--help"]);
    for command in ["console", "signal", "wait-signal", "write-file", "install", "supervise", "attach", "version"] {
        assert!(text(&help.stdout).contains(&format!("\n  {command}")), "{command}");
    }
    assert!(text(&help.stdout).lines().all(|line| line.len() <= 80));
}

#[test]
fn install_puts_a_copy_where_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let agent_path = folder.path().join("podbay-agent");
    // A folder, then the file itself, over what is there and running or not.
    for target in [folder.path(), agent_path.as_path(), agent_path.as_path()] {
        let output = Command::new("sh")
            .args(["-c", "umask 077; exec \"$0\" install \"$1\"", podbay_agent_embed::BUILT_AT])
            .arg(target)
            .output()
            .expect("runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::metadata(&agent_path).expect("there").permissions().mode() & 0o7777, 0o755);
        assert!(fs::read(&agent_path).expect("readable") == podbay_agent_embed::BINARY);
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), 1, "nothing else is left");
        fs::set_permissions(&agent_path, fs::Permissions::from_mode(0o400)).expect("set");
    }
}

#[test]
fn an_install_that_fails_says_so_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("taken/podbay-agent")).expect("made");
    let taken = folder.path().join("taken");
    for path in ["/no/such/folder/agent", "", taken.to_str().expect("UTF-8")] {
        let output = agent(&["install", path]);
        assert_eq!(output.status.code(), Some(1), "{path:?}");
        assert!(text(&output.stderr).starts_with("Error: "), "{path:?}");
    }
    assert_eq!(agent(&["install"]).status.code(), Some(1));
    assert_eq!(agent(&["install", "a", "b"]).status.code(), Some(1));
    assert_eq!(fs::read_dir(taken).expect("readable").count(), 1);
}
