use super::*;
use podbay::{
    Denied,
    v1::{Exec, Open, Pty, Reason, Shell, Subsystem, open::Program},
};
use proptest::prelude::*;
use std::time::Duration;
use tokio::time::Instant;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn rule(mode: Mode, allow: &[&str], deny: &[&str]) -> Rule {
    Rule { mode: Some(mode), allow: names(allow), deny: names(deny) }
}

/// The reference's tables (2.3): a named kind with both lists.
#[test]
fn named_requests_pass_as_the_table_says() {
    type Asks = fn(&str) -> Ask<'_>;
    type Sets = fn(Rule) -> Security;
    let kinds: [(Asks, Sets); 3] = [
        (|name| Ask::Env(name), |env| Security { env, ..Security::default() }),
        (|name| Ask::Subsystem(name), |subsystem| Security { subsystem, ..Security::default() }),
        (|name| Ask::Signal(name), |signal| Security { signal, ..Security::default() }),
    ];
    for (ask, set) in kinds {
        let passes = |mode, name| set(rule(mode, &["A", "B"], &["B", "C"])).admits(ask(name)).is_ok();
        // (name, enable, filter, disable)
        for (name, enable, filter, disable) in [
            ("A", true, true, false),
            // On both lists: each mode looks at its own only.
            ("B", false, true, false),
            ("C", false, false, false),
            ("D", true, false, false),
            // Exactly: no case, no blanks, no prefix, no pattern.
            ("a", true, false, false),
            ("A ", true, false, false),
            ("", true, false, false),
            ("*", true, false, false),
        ] {
            let all = [Mode::Enable, Mode::Filter, Mode::Disable].map(|mode| passes(mode, name));
            assert_eq!(all, [enable, filter, disable], "{:?}", ask(name));
        }
    }
}

#[test]
fn commands_are_compared_whole() {
    let with = |mode| Security { command: rule(mode, &["ls -l", "a b "], &["id"]), ..Security::default() };
    let passes = |mode, line| with(mode).admits(Ask::Exec(line)).is_ok();
    for (line, filter) in [
        ("ls -l", true),
        ("a b ", true),
        ("ls -l ", false),
        (" ls -l", false),
        ("ls  -l", false),
        ("ls", false),
        ("LS -l", false),
        ("ls -l; id", false),
        ("ls -l\n", false),
        ("a b", false),
        ("", false),
    ] {
        let all = [Mode::Enable, Mode::Filter, Mode::Disable].map(|mode| passes(mode, line));
        assert_eq!(all, [true, filter, false], "{line:?}");
    }
    assert!(passes(Mode::Enable, "id"), "commands have no deny list");
    let words = [Mode::Enable, Mode::Filter, Mode::Disable].map(|mode| with(mode).admits(Ask::Words).is_ok());
    assert_eq!(words, [true, false, false]);
}

#[test]
fn shells_and_terminals_have_no_lists() {
    for (mode, passes) in [(Mode::Enable, true), (Mode::Filter, false), (Mode::Disable, false)] {
        let security = Security { shell: Some(mode), tty: Some(mode), ..Security::default() };
        assert_eq!(security.admits(Ask::Shell), if passes { Ok(()) } else { Err(Denied::Shell) });
        assert_eq!(security.admits(Ask::Tty), if passes { Ok(()) } else { Err(Denied::Tty) });
    }
}

#[test]
fn signals_follow_their_own_mode() {
    let security = Security { shell: Some(Mode::Disable), ..Security::default() };
    assert_eq!(security.admits(Ask::Signal("TERM")), Ok(()));
    let security = Security { signal: rule(Mode::Disable, &["TERM"], &[]), ..Security::default() };
    assert_eq!((security.admits(Ask::Signal("TERM")), security.admits(Ask::Shell)), (Err(Denied::Signal), Ok(())));
}

#[test]
fn a_forced_command_is_told_what_was_asked() {
    let security = Security { force_command: "the one ".into(), ..Security::default() };
    let runs = |program| {
        let open = Open { program: Some(program), ..Open::default() };
        match security.runs(&open) {
            Ok(Runs::Forced { by, command, original }) => {
                assert_eq!((by, command), (Forcer::Policy, "the one "));
                original
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(runs(Program::Shell(Shell {})), None);
    assert_eq!(runs(Program::Exec(Exec { command: "a 'b' ".into(), argv: Vec::new() })), Some("a 'b' ".into()));
    assert_eq!(runs(Program::Subsystem(Subsystem { name: "sftp".into() })), Some("sftp".into()));
    let argv = names(&["a", "b c", "it's", ""]);
    assert_eq!(runs(Program::Exec(Exec { command: "x".into(), argv })), Some(r"a 'b c' 'it'\''s' ''".into()));
    assert_eq!(security.runs(&Open::default()), Ok(Runs::AsAsked), "nothing asked for, nothing forced");
    let long = Open {
        program: Some(Program::Exec(Exec { command: "x".repeat(128 * 1024), argv: Vec::new() })),
        ..Open::default()
    };
    let refusal = security.runs(&long).expect("passes").check().expect_err("too long for a variable");
    assert_eq!(refusal.reason(), Reason::InvalidRequest);
}

#[test]
fn the_servers_forced_command_goes_before_a_logins() {
    let by = Restrictions { force_command: Some("theirs".into()), no_terminal: true };
    let forces = |security: &Security| (security.force_command.clone(), security.forced_by);
    let plain = Security { subsystem: rule(Mode::Enable, &[], &["x"]), ..Security::default() };
    let subsystems = names(&["sftp", "x"]);
    let theirs = plain.clone().restricted(&by);
    assert_eq!(forces(&theirs), ("theirs".to_owned(), Forcer::Login));
    assert_eq!(theirs.admits(Ask::Tty), Err(Denied::Tty));
    assert_eq!(theirs.to_proto(&subsystems).subsystems, ["sftp"], "as sshd: it must be there");
    let server = Security { force_command: "ours".into(), ..plain.clone() }.restricted(&by);
    assert_eq!(forces(&server), ("ours".to_owned(), Forcer::Policy));
    assert!(server.to_proto(&subsystems).subsystems.is_empty());
    assert_eq!(plain.clone().restricted(&Restrictions::default()), plain);
    // A replica from before there was a Forcer forces it all the same, and one from after reads what such a one has sealed.
    let mut sealed = serde_json::to_value(&theirs).expect("writes");
    assert_eq!(sealed["force_command"], "theirs");
    sealed.as_object_mut().expect("an object").remove("forced_by");
    let read: Security = serde_json::from_value(sealed).expect("reads");
    assert_eq!(forces(&read), ("theirs".to_owned(), Forcer::Policy));
}

#[test]
fn a_users_policy_is_laid_over_the_files() {
    let file = Security {
        default_mode: Some(Mode::Disable),
        force_command: "f".into(),
        env: rule(Mode::Filter, &["A"], &["B"]),
        most: NonZeroU32::new(2).map(Most::Sessions),
        idle_timeout: Duration::from_secs(9),
        ..Security::default()
    };
    assert_eq!(file.clone().merged(Security::default()), file, "what is empty changes nothing");
    assert_eq!(Security::default().merged(file.clone()), file);
    let over = Security {
        default_mode: Some(Mode::Enable),
        env: Rule { allow: names(&["C"]), ..Rule::default() },
        most: Some(Most::Unlimited),
        ..Security::default()
    };
    let merged = file.clone().merged(over);
    assert_eq!(merged.env, rule(Mode::Filter, &["C"], &["B"]), "a list is replaced whole");
    assert_eq!((merged.default_mode, merged.max_sessions()), (Some(Mode::Enable), None));
    assert_eq!((merged.force_command, merged.idle_timeout), (file.force_command, file.idle_timeout));
}

#[test]
fn what_is_announced_is_what_is_enforced() {
    let subsystems = names(&["sftp", "x"]);
    let security = Security {
        default_mode: Some(Mode::Disable),
        subsystem: rule(Mode::Enable, &[], &["x"]),
        command: rule(Mode::Enable, &[], &["id"]),
        ..Security::default()
    };
    let policy = security.to_proto(&subsystems);
    assert_eq!(policy.subsystems, ["sftp"]);
    let mode = |rule: &Option<v1::Rule>| rule.as_ref().expect("there").mode();
    assert_eq!(mode(&policy.shell), v1::rule::Mode::Disable);
    assert_eq!(policy.subsystem.map(|rule| rule.names), Some(names(&["x"])));
    assert_eq!(policy.command.map(|rule| rule.names), Some(Vec::new()), "commands have no deny list");
    let forced = Security { force_command: "f".into(), ..Security::default() };
    assert!(forced.to_proto(&subsystems).subsystems.is_empty(), "none need be there");
}

fn any_mode() -> impl Strategy<Value = Option<Mode>> {
    prop::sample::select(vec![None, Some(Mode::Enable), Some(Mode::Filter), Some(Mode::Disable)])
}

const NAMES: [&str; 5] = ["A", "B", "sftp", "TERM", ORIGINAL_COMMAND];

fn any_rule() -> impl Strategy<Value = Rule> {
    let list = || prop::collection::vec(prop::sample::select(NAMES.map(str::to_owned).to_vec()), 0..3);
    (any_mode(), list(), list()).prop_map(|(mode, allow, deny)| Rule { mode, allow, deny })
}

fn any_security() -> impl Strategy<Value = Security> {
    let rules = (any_rule(), any_rule(), any_rule(), any_rule());
    // A configuration's: what a login forces comes after.
    (any_mode(), any_mode(), any_mode(), rules, any::<bool>()).prop_map(
        |(default_mode, shell, tty, (env, command, subsystem, signal), forced)| Security {
            default_mode,
            shell,
            tty,
            env,
            command,
            subsystem,
            signal,
            force_command: if forced { "forced".into() } else { String::new() },
            ..Security::default()
        },
    )
}

fn any_restrictions() -> impl Strategy<Value = Restrictions> {
    (prop::option::of("[ab]{1,3}"), any::<bool>())
        .prop_map(|(force_command, no_terminal)| Restrictions { force_command, no_terminal })
}

fn any_open() -> impl Strategy<Value = Open> {
    let name = || prop::sample::select(NAMES.map(str::to_owned).to_vec());
    let program = prop_oneof![
        Just(None),
        Just(Some(Program::Shell(Shell {}))),
        name().prop_map(|command| Some(Program::Exec(Exec { command, argv: Vec::new() }))),
        name().prop_map(|word| Some(Program::Exec(Exec { command: String::new(), argv: vec![word] }))),
        name().prop_map(|name| Some(Program::Subsystem(Subsystem { name }))),
    ];
    (program, prop::collection::hash_map(name(), Just(String::new()), 0..3), any::<bool>()).prop_map(
        |(program, environment, tty)| Open { program, environment, pty: tty.then(Pty::default), ..Open::default() },
    )
}

proptest! {
    /// Whatever the lists, the defaults and the order: what is off is off.
    #[test]
    fn nothing_gets_past_a_disable(
        security in any_security(), by in any_restrictions(), opens in prop::collection::vec(any_open(), 0..8),
    ) {
        let off = |mode: Option<Mode>| mode.or(security.default_mode) == Some(Mode::Disable);
        let restricted = security.clone().restricted(&by);
        for open in &opens {
            let Ok(runs) = restricted.runs(open) else { continue };
            prop_assert!(security.runs(open).is_ok(), "a restriction adds");
            prop_assert!(open.pty.is_none() || !by.no_terminal);
            prop_assert!(open.environment.is_empty() || !off(security.env.mode));
            prop_assert!(!open.environment.contains_key(ORIGINAL_COMMAND));
            prop_assert!(open.pty.is_none() || !off(security.tty));
            match &open.program {
                None => {}
                Some(Program::Shell(_)) => prop_assert!(!off(security.shell)),
                Some(Program::Exec(_)) => prop_assert!(!off(security.command.mode)),
                Some(Program::Subsystem(_)) => prop_assert!(!off(security.subsystem.mode)),
            }
            let own = Some(&security.force_command).filter(|own| !own.is_empty());
            let forced = match &runs {
                Runs::AsAsked => None,
                Runs::Forced { by, command, .. } => Some((*command, *by)),
            };
            let ours = own.map(|command| (command.as_str(), Forcer::Policy));
            let theirs = by.force_command.as_deref().map(|command| (command, Forcer::Login));
            prop_assert_eq!(forced, ours.or(theirs).filter(|_| open.program.is_some()));
        }
        for name in NAMES {
            prop_assert!(restricted.admits(Ask::Signal(name)).is_err() || !off(security.signal.mode));
        }
    }

    /// Sealing keeps a policy, and one laid over it can't open what it does not name.
    #[test]
    fn a_policy_survives_sealing_and_merging(file in any_security(), over in any_security()) {
        let text = serde_json::to_string(&file).expect("writes");
        prop_assert_eq!(&serde_json::from_str::<Security>(&text).expect("reads"), &file);
        let merged = file.clone().merged(over.clone());
        prop_assert_eq!(merged.tty, over.tty.or(file.tty));
        prop_assert_eq!(merged.clone().merged(over), merged);
    }

    /// In any order of events: warned before the cut unless time jumped, cut when it is due and not before.
    #[test]
    fn time_is_told_and_kept(
        whole in 0u64..100, idle in 0u64..100,
        events in prop::collection::vec((1u64..20, any::<bool>()), 1..40),
    ) {
        let security = Security {
            max_session_time: Duration::from_secs(whole),
            idle_timeout: Duration::from_secs(idle),
            ..Security::default()
        };
        let start = Instant::now();
        let (mut clock, mut at, mut quiet) = (Clock::new(&security, start, Duration::ZERO), 0, 0);
        for (step, active) in events {
            at += step;
            quiet += step;
            let now = start + Duration::from_secs(at);
            let over = (whole > 0 && at >= whole) || (idle > 0 && quiet >= idle);
            prop_assert!(!over || clock.due().is_some_and(|due| due <= now));
            match clock.tick(now) {
                Tick::Cut(refusal) => {
                    prop_assert!(over);
                    prop_assert_eq!(refusal.reason(), Reason::Policy);
                    return Ok(());
                }
                Tick::Warn(_) => prop_assert!(!over && (whole > 0 || idle > 0)),
                Tick::Nothing => prop_assert!(!over),
            }
            if active {
                quiet = 0;
                clock.active(now);
            }
        }
    }
}

#[test]
fn a_limit_warns_once_and_counts_from_the_programs_start() {
    let security = Security { max_session_time: Duration::from_secs(100), ..Security::default() };
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut clock = Clock::new(&security, start, Duration::from_secs(20));
    assert_eq!(clock.due(), Some(at(55)));
    assert_eq!(clock.tick(at(54)), Tick::Nothing);
    assert_eq!(clock.tick(at(55)), Tick::Warn("this session ends in 25s: its time is over then".into()));
    assert_eq!((clock.tick(at(56)), clock.due()), (Tick::Nothing, Some(at(80))));
    clock.active(at(79));
    assert!(matches!(clock.tick(at(80)), Tick::Cut(_)));
    let long = Security { idle_timeout: Duration::from_hours(1), ..Security::default() };
    assert_eq!(Clock::new(&long, start, Duration::ZERO).due(), Some(at(3540)), "a minute before");
    assert_eq!(Clock::new(&Security::default(), start, Duration::ZERO).due(), None);
}

#[test]
fn an_agents_word_counts_and_a_clients_only_where_it_is_longer() {
    let seconds = Duration::from_secs;
    let limited = Security { max_session_time: seconds(100), ..Security::default() };
    let now = Instant::now();
    let left = |known: Known, told| {
        let clock = Clock::of_agent(&limited, now, &known, seconds(told)).expect("known");
        let cut = |tick| matches!(tick, Tick::Cut(refusal) if refusal.reason() == Reason::Policy);
        (0..=100).find(|after| cut(clock.clone().tick(now + seconds(*after))))
    };
    let known = |resumed, ran: Option<u64>| Known { resumed, ran: ran.map(seconds), ended: false };
    assert_eq!(left(known(true, Some(60)), 0), Some(40));
    assert_eq!(left(known(true, Some(60)), 70), Some(30), "a client can shorten it");
    assert_eq!(left(known(true, Some(1000)), 0), Some(0));
    assert_eq!(left(known(false, None), 0), Some(100), "it begins now");
    assert_eq!(left(Known { ended: true, ..known(true, Some(1000)) }, 1000), None, "what it has left is for who comes");
    let unknown = known(true, None);
    let refusal = Clock::of_agent(&limited, now, &unknown, seconds(5)).expect_err("only the client could say");
    assert_eq!(refusal.reason(), Reason::Policy);
    assert!(
        Clock::of_agent(&Security::default(), now, &unknown, Duration::ZERO).is_ok(),
        "and nobody need, without a limit"
    );
    assert_eq!(agents_limit(&limited), Some(seconds(110)));
    assert_eq!(agents_limit(&Security::default()), None);
}
