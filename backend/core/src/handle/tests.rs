use super::*;
use crate::{config::Settings, template};
use k8s_openapi::api::core::v1::EnvVar;
use podbay_runtime::config::Document;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn settings(mode: &str) -> Settings {
    let text = format!("kubernetes: {{pod: {{disableAgent: true, mode: {mode}}}}}");
    let document = Document::parse("f", &text).expect("YAML");
    let settings = Settings::read(&mut document.root());
    document.finish().expect("no mistake");
    settings.expect("settings")
}

fn who() -> Identity {
    Identity {
        connection: ConnectionId::from_bytes([7; 16]),
        owner: OwnerId::from_bytes([8; 16]),
        caller: "a".into(),
        user: User::named("alice"),
        remote: None,
    }
}

fn contents() -> Contents {
    let settings = settings("connection");
    let target = Target::Pod { namespace: "ns".into(), name: "p".into(), uid: "u".into(), image_id: "i".into() };
    let environment = BTreeMap::from([("A".to_owned(), "hunter2".to_owned())]);
    Contents::new(&settings, settings.timeouts, &who(), environment, target)
}

fn ring() -> KeyRing {
    KeyRing::new(("new", &NEW), &[("old", &OLD)]).expect("keys")
}

#[test]
fn opens_what_it_sealed_for_this_caller_only() {
    let handle = ring().seal(&contents(), "a").expect("sealed");
    assert!(handle.len() < 1024, "{} bytes", handle.len());
    assert_eq!(ring().open(&handle, "a"), Ok(contents()));
    for caller in ["b", "", "aa"] {
        assert_eq!(ring().open(&handle, caller).map_err(|r| r.reason()), Err(Reason::HandleInvalid));
    }
    assert_ne!(ring().seal(&contents(), "a"), Ok(handle), "a fresh nonce each time");
    assert!(!format!("{:?} {:?}", contents(), ring()).contains("hunter2"));
}

#[test]
fn every_changed_byte_and_every_length_is_noticed() {
    let handle = ring().seal(&contents(), "a").expect("sealed");
    for i in 0..handle.len() {
        let mut changed = handle.clone();
        changed[i] ^= 1;
        assert!(ring().open(&changed, "a").is_err(), "byte {i}");
        assert!(ring().open(&handle[..i], "a").is_err(), "length {i}");
    }
    assert!(ring().open(&[handle.as_slice(), &[0]].concat(), "a").is_err());
    assert!(ring().open(&vec![1; MAX_HANDLE + 1], "a").is_err());
}

#[test]
fn keys_rotate() {
    let old = KeyRing::new(("old", &OLD), &[]).expect("key");
    let handle = old.seal(&contents(), "a").expect("sealed");
    assert_eq!(old.renew(&handle, "a"), Ok(None));
    let renewed = ring().renew(&handle, "a").expect("opened").expect("sealed anew");
    assert_eq!(ring().renew(&renewed, "a"), Ok(None));
    let alone = KeyRing::new(("new", &NEW), &[]).expect("key");
    assert_eq!(alone.open(&renewed, "a"), Ok(contents()));
    assert!(alone.open(&handle, "a").is_err(), "its key is retired");
    assert!(ring().renew(&handle, "b").is_err());
    let same_id = KeyRing::new(("new", &OLD), &[]).expect("key");
    assert!(same_id.open(&renewed, "a").is_err(), "another key of that name");
    assert!(KeyRing::random().expect("random").open(&renewed, "a").is_err());
}

#[test]
fn a_template_fits_unless_it_is_huge() {
    let settings = settings("session");
    let mut base = template::base_pod(&settings.pod, &who(), &BTreeMap::new());
    let sealed = |base: &Pod| {
        let target = Target::Template(Box::new(base.clone()));
        ring().seal(&Contents::new(&settings, settings.timeouts, &who(), BTreeMap::new(), target), "a")
    };
    let handle = sealed(&base).expect("sealed");
    assert!(handle.len() < 8 * 1024, "{} bytes", handle.len());
    let opened = ring().open(&handle, "a").expect("opened");
    assert!(opened.mode() == Mode::Session && opened.pod().is_none());
    assert!(opened.target == Target::Template(Box::new(base.clone())));

    // Digests don't compress.
    let noise = |i: u32| hex::encode(ring::digest::digest(&ring::digest::SHA512, &i.to_be_bytes()));
    let env = (0..2000).map(|i| EnvVar { name: format!("V{i}"), value: Some(noise(i)), value_from: None }).collect();
    if let Some(spec) = &mut base.spec {
        spec.containers[0].env = Some(env);
    }
    assert_eq!(sealed(&base).map_err(|refusal| refusal.reason()), Err(Reason::ConfigTooLarge));
}

#[test]
fn keys_are_read_from_the_configuration() {
    let read = |text: &str| {
        let document = Document::parse("f", text).expect("YAML");
        let ring = KeyRing::read(&mut document.root().section("grpc"));
        document.finish().map(|()| ring).map_err(|mistakes| mistakes.to_string())
    };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("key");
    std::fs::write(&file, format!("{}=\n", "A".repeat(43))).expect("written");
    let (key, file) = ("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", file.display());
    let ring = read(&format!("grpc: {{handleKeys: [{{id: one, key: '{key}'}}, {{id: two, file: '{file}'}}]}}"));
    assert_eq!(format!("{:?}", ring.expect("good").expect("keys")), "[\"one\", \"two\"]");
    let same = KeyRing::new(("one", &OLD), &[]).expect("key");
    let ring = read(&format!("grpc: {{handleKeys: [{{id: one, key: '{key}'}}]}}")).expect("good").expect("keys");
    assert!(ring.open(&same.seal(&contents(), "a").expect("sealed"), "a").is_ok());
    assert!(read("grpc: {}").expect("good").is_none());
    for (entry, words) in [
        ("{id: a}", "give either key or file"),
        ("{id: a, key: 'AAAA'}", "32 bytes"),
        ("{id: a, key: '!!'}", "32 bytes"),
        ("{id: a, file: /nowhere}", "can't be read"),
        ("{key: 'AAAA'}", "is missing"),
    ] {
        let error = read(&format!("grpc: {{handleKeys: [{entry}]}}")).expect_err(entry);
        assert!(error.contains(words), "{entry}: {error}");
    }
}
