//! `podbay demo` as its user meets it.

use std::process::Command;

#[test]
fn help_says_what_it_does_and_wrong_arguments_are_refused() {
    let podbay = || Command::new(env!("CARGO_BIN_EXE_podbay"));
    let help = podbay().args(["demo", "--help"]).output().expect("runs");
    let text = String::from_utf8_lossy(&help.stdout);
    for option in ["--state-dir", "--ssh-port", "--grpc-port", "--mode", "--kubeconfig", "--namespace", "--image"] {
        assert!(text.contains(option), "{option} is not in: {text}");
    }
    assert_eq!(podbay().args(["demo", "--mode", "other"]).output().expect("runs").status.code(), Some(2));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused_and_left_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::env::temp_dir().join(format!("podbay-open-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("made");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("opened");
    let run =
        Command::new(env!("CARGO_BIN_EXE_podbay")).args(["demo", "--state-dir"]).arg(&dir).output().expect("runs");
    let left = std::fs::read_dir(&dir).expect("still there").count();
    std::fs::remove_dir(&dir).expect("removed");
    assert_eq!((run.status.code(), left), (Some(1), 0));
    assert!(String::from_utf8_lossy(&run.stderr).contains("only you can write to"), "{run:?}");
}
