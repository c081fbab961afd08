use super::*;
use crate::session::{program::MAX_COMMAND, testing::contents};
use podbay::v1::{Exec, Open, Pty, ResumeFrom, Shell, Subsystem, WindowSize, open::Program};
use proptest::prelude::*;

fn open(program: Program) -> Open {
    Open { session_id: "0".repeat(32), program: Some(program), ..Open::default() }
}

fn exec(command: &str, argv: &[&str]) -> Program {
    Program::Exec(Exec { command: command.into(), argv: argv.iter().map(ToString::to_string).collect() })
}

#[test]
fn what_runs() {
    let argv = |program| Opening::parse(&open(program), &contents()).map(|opening| opening.argv);
    assert_eq!(argv(Program::Shell(Shell {})), Ok(vec!["/bin/bash".to_owned()]));
    let line = "/bin/echo 'a b' $(id)";
    assert_eq!(argv(exec(line, &[])), Ok(["/bin/sh", "-c", line].map(str::to_owned).to_vec()));
    assert_eq!(argv(exec("ignored", &["a", "b c"])), Ok(["a", "b c"].map(str::to_owned).to_vec()));
    let sftp = |name: &str| Program::Subsystem(Subsystem { name: name.into() });
    assert_eq!(argv(sftp("sftp")), Ok(vec!["/usr/lib/openssh/sftp-server".to_owned()]));
    assert_eq!(argv(sftp("x")).map_err(|r| r.reason()), Err(Reason::SubsystemUnknown));
    for bad in
        [exec("", &[]), exec("a\0", &[]), exec(&"x".repeat(MAX_COMMAND + 1), &[]), exec("", &["-x"]), exec("", &[""])]
    {
        assert_eq!(argv(bad).map_err(|r| r.reason()), Err(Reason::InvalidRequest));
    }
}

#[test]
fn a_policy_stands_before_all_and_a_forced_command_in_its_place() {
    use crate::policy::{Mode, Rule};
    let mut contents = contents();
    let refused =
        |open: &Open, contents: &Contents| Opening::parse(open, contents).err().map(|refusal| refusal.reason());
    contents.security.shell = Some(Mode::Disable);
    contents.security.force_command = "forced".into();
    let shell = open(Program::Shell(Shell {}));
    assert_eq!(refused(&shell, &contents), Some(Reason::Policy));
    assert_eq!(refused(&Open { program: None, ..shell }, &contents), Some(Reason::InvalidRequest));
    let mut asked = open(Program::Subsystem(Subsystem { name: "nosuch".into() }));
    asked.environment = [("C".to_owned(), "c".to_owned())].into();
    let opening = Opening::parse(&asked, &contents).expect("forced");
    assert_eq!(opening.argv, ["/bin/sh", "-c", "forced"]);
    let environment = [("C", "c"), (ORIGINAL_COMMAND, "nosuch")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(opening.environment, environment);
    // Neither a resume nor an attach is a way around it.
    asked.environment.insert(ORIGINAL_COMMAND.into(), "lie".into());
    asked.resume_from = Some(ResumeFrom::default());
    assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
    asked.environment.clear();
    asked.pty = Some(Pty::default());
    assert_eq!(refused(&asked, &contents), None);
    contents.security.tty = Some(Mode::Filter);
    assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
    asked.pty = None;
    contents.security.subsystem = Rule { mode: Some(Mode::Filter), ..Rule::default() };
    asked.take_over = true;
    assert_eq!(refused(&asked, &contents), Some(Reason::Policy));
}

#[test]
fn what_a_certificate_forces_stands_in_the_place_of_what_is_there() {
    use crate::policy::Restrictions;
    let mut contents = contents();
    let by = Restrictions { force_command: Some("theirs".into()), no_terminal: true };
    contents.security = contents.security.restricted(&by);
    let parse = |open: &Open| Opening::parse(open, &contents);
    let told = |program| {
        parse(&open(program)).map(|opening| {
            assert_eq!(opening.argv, ["/bin/sh", "-c", "theirs"]);
            opening.environment.into_iter().find_map(|(name, value)| (name == ORIGINAL_COMMAND).then_some(value))
        })
    };
    assert_eq!(told(Program::Shell(Shell {})), Ok(None));
    assert_eq!(told(exec("id  'x' ", &[])), Ok(Some("id  'x' ".to_owned())));
    assert_eq!(told(exec("", &["a", "b c"])), Ok(Some("a 'b c'".to_owned())));
    let subsystem = |name: &str| Program::Subsystem(Subsystem { name: name.into() });
    assert_eq!(told(subsystem("sftp")), Ok(Some("/usr/lib/openssh/sftp-server".to_owned())), "its program");
    assert_eq!(told(subsystem("x")).map_err(|refusal| refusal.reason()), Err(Reason::SubsystemUnknown));
    let terminal = Open { pty: Some(Pty::default()), ..open(Program::Shell(Shell {})) };
    assert_eq!(parse(&terminal).map(drop).map_err(|refusal| refusal.reason()), Err(Reason::Policy));
}

#[test]
fn a_certificate_that_forces_internal_sftp_is_for_sftp() {
    use crate::policy::Restrictions;
    let with = |command: &str, open: &Open| {
        let by = Restrictions { force_command: Some(command.into()), no_terminal: false };
        let mut contents = contents();
        contents.security = contents.security.restricted(&by);
        Opening::parse(open, &contents).map(|opening| opening.argv).map_err(|refusal| refusal.reason())
    };
    let subsystem = |name: &str| open(Program::Subsystem(Subsystem { name: name.into() }));
    let server = "/usr/lib/openssh/sftp-server";
    let argv = |words: &[&str]| Ok(words.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(with("internal-sftp", &subsystem("sftp")), argv(&[server]));
    assert_eq!(with(" internal-sftp  -R\t-d /data", &subsystem("sftp")), argv(&[server, "-R", "-d", "/data"]));
    assert_eq!(with("internal-sftpd", &subsystem("sftp")), argv(&["/bin/sh", "-c", "internal-sftpd"]));
    assert_eq!(with("internal-sftp", &subsystem("x")), Err(Reason::SubsystemUnknown));
    for refused in [open(exec("id", &[])), open(exec("", &["id"])), open(Program::Shell(Shell {}))] {
        assert_eq!(with("internal-sftp -R", &refused), Err(Reason::Policy));
    }
    assert_eq!(with("internal-sftp -d '/a b'", &subsystem("sftp")), Err(Reason::Policy), "what is not read is not run");
}

fn any_open() -> impl Strategy<Value = Open> {
    let program = prop_oneof![
        Just(None),
        Just(Some(Program::Shell(Shell {}))),
        "[a ]{0,3}".prop_map(|line| Some(exec(&line, &[]))),
        "[-a]{0,2}".prop_map(|word| Some(exec("", &[&word]))),
        prop::sample::select(vec!["sftp", "x"])
            .prop_map(|name| Some(Program::Subsystem(Subsystem { name: name.into() }))),
    ];
    let names = prop::sample::select(vec!["A", "PATH", "BASH_ENV", ORIGINAL_COMMAND]);
    let environment = prop::collection::hash_map(names.prop_map(str::to_owned), "[a-z]{0,3}", 0..3);
    let again = (any::<bool>(), any::<bool>(), 0..3u32);
    (program, environment, any::<bool>(), again).prop_map(
        |(program, environment, tty, (resume, take_over, attempt))| Open {
            session_id: "0".repeat(32),
            program,
            environment,
            pty: tty.then(Pty::default),
            resume_from: resume.then(ResumeFrom::default),
            take_over,
            attempt,
            ..Open::default()
        },
    )
}

proptest! {
    /// First stream or later one, whatever it asks for: nothing runs but what is forced, and it is told no lie.
    #[test]
    fn nothing_gets_past_what_is_forced(
        server in any::<bool>(), only_shells in any::<bool>(), no_terminal in any::<bool>(),
        opens in prop::collection::vec(any_open(), 1..8),
    ) {
        use crate::policy::Restrictions;
        let mut contents = Contents { only_shells, ..contents() };
        if server {
            contents.security.force_command = "ours".into();
        }
        let by = Restrictions { force_command: Some("theirs".into()), no_terminal };
        contents.security = contents.security.restricted(&by);
        for open in &opens {
            let Ok(opening) = Opening::parse(open, &contents) else { continue };
            let forced = if server { "ours" } else { "theirs" };
            prop_assert_eq!(&opening.argv, &["/bin/sh", "-c", forced]);
            prop_assert!(!only_shells || matches!(open.program, Some(Program::Shell(_))));
            prop_assert!(!(opening.tty && no_terminal));
            let told = opening.environment.iter().find(|(name, _)| name == ORIGINAL_COMMAND).map(|(_, value)| value.as_str());
            let asked = match &open.program {
                None | Some(Program::Shell(_)) => None,
                Some(Program::Exec(exec)) => Some(exec.argv.first().unwrap_or(&exec.command).as_str()),
                Some(Program::Subsystem(subsystem)) if server => Some(subsystem.name.as_str()),
                Some(Program::Subsystem(_)) => Some("/usr/lib/openssh/sftp-server"),
            };
            prop_assert_eq!(told.map(|told| told.trim_matches('\'')), asked);
        }
    }
}

#[test]
fn kuberuns_disable_command_leaves_shells() {
    let contents = Contents { only_shells: true, ..contents() };
    let reason = |program| Opening::parse(&open(program), &contents).map(drop).map_err(|refusal| refusal.reason());
    assert_eq!(reason(Program::Shell(Shell {})), Ok(()));
    assert_eq!(reason(exec("id", &[])), Err(Reason::Policy));
    assert_eq!(reason(exec("", &["id"])), Err(Reason::Policy));
    assert_eq!(reason(Program::Subsystem(Subsystem { name: "sftp".into() })), Err(Reason::Policy));
    // What is forced is forced in the place of what is allowed.
    let mut forcing = contents;
    forcing.security.force_command = "forced".into();
    let reason = |program| Opening::parse(&open(program), &forcing).map(drop).map_err(|refusal| refusal.reason());
    assert_eq!((reason(Program::Shell(Shell {})), reason(exec("id", &[]))), (Ok(()), Err(Reason::Policy)));
}

#[test]
fn the_sessions_environment_comes_after_the_connections() {
    let mut open = open(Program::Shell(Shell {}));
    open.environment = [("A".to_owned(), "session".to_owned()), ("C".to_owned(), "c".to_owned())].into();
    open.pty = Some(Pty {
        term: "xterm".into(),
        size: Some(WindowSize { columns: 80, rows: 24, ..WindowSize::default() }),
        modes: Vec::new(),
    });
    let mut contents = contents();
    contents.environment = [("A".to_owned(), "a".to_owned()), ("B".to_owned(), "b".to_owned())].into();
    let opening = Opening::parse(&open, &contents).expect("valid");
    let environment: Vec<_> = opening.environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(environment, [("A", "session"), ("B", "b"), ("C", "c"), ("TERM", "xterm")]);
    assert_eq!((opening.tty, opening.size), (true, Some((80, 24))));
}

#[test]
fn what_is_not_valid_is_refused_with_its_reason() {
    let refused = |change: fn(&mut Open)| {
        let mut open = open(Program::Shell(Shell {}));
        change(&mut open);
        Opening::parse(&open, &contents()).expect_err("not valid").reason()
    };
    let invalid: [fn(&mut Open); 9] = [
        |open| open.session_id = "x".into(),
        |open| open.program = None,
        |open| open.stdout_credit = MAX_CREDIT + 1,
        |open| open.stderr_credit = u64::MAX,
        |open| drop(open.environment.insert("1".into(), String::new())),
        |open| drop(open.environment.insert("A".into(), "\0".into())),
        |open| drop(open.environment.insert("A".into(), "x".repeat(MAX_ENVIRONMENT))),
        |open| open.pty = Some(Pty { term: "x".repeat(MAX_TERM + 1), ..Pty::default() }),
        |open| {
            let size = Some(WindowSize { columns: 65536, ..WindowSize::default() });
            open.pty = Some(Pty { size, ..Pty::default() });
        },
    ];
    for change in invalid {
        assert_eq!(refused(change), Reason::InvalidRequest);
    }
    let refused = |change: fn(&mut Open)| {
        let mut open = open(Program::Shell(Shell {}));
        change(&mut open);
        let opening = Opening::parse(&open, &contents()).expect("valid");
        opening.without_agent().expect_err("needs the agent").reason()
    };
    let unimplemented: [fn(&mut Open); 4] = [
        |open| open.attempt = 2,
        |open| open.take_over = true,
        |open| open.resume_from = Some(ResumeFrom { stdout: 1, stderr: 0 }),
        |open| {
            let spill = v1::OutputWhenDetached { mode: 2, max_bytes: 1, ..Default::default() };
            open.output_when_detached = Some(spill);
        },
    ];
    for change in unimplemented {
        assert_eq!(refused(change), Reason::Unimplemented);
    }
}
