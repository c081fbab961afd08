//! What a user's own credentials restrict a connection to, on the fake. All in virtual time.

mod world;

use k8s_openapi::api::core::v1::Pod;
use podbay::v1;
use podbay_backend_core::{
    cluster::Cluster as _,
    connections::{OpenEvent, OpenRequest},
    handle::{Contents, Target},
    policy::{Mode, Restrictions, Security},
};
use tokio::sync::mpsc;
use world::World;

/// Opens with restrictions; gives what was told, and what was sealed.
async fn restricted(world: &World, connection: u8, by: Restrictions) -> (v1::Accepted, Contents) {
    let request = OpenRequest { restrictions: by, ..World::request(connection, 9, "a") };
    let (sender, mut events) = mpsc::channel(64);
    world.connections.open(request, sender).await.expect("opened");
    let Some(OpenEvent::Accepted(accepted)) = events.recv().await else { panic!("not accepted") };
    loop {
        if let OpenEvent::Opened(opened) = events.recv().await.expect("opened") {
            return (*accepted, world.connections.keys().open(&opened.handle, "a").expect("a handle"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_logins_restrictions_are_told_sealed_and_found_again() {
    let world = World::configured("metadata: {namespace: ns}");
    let by = Restrictions { force_command: Some("theirs".into()), no_terminal: true };
    let (accepted, contents) = restricted(&world, 1, by.clone()).await;
    let policy = accepted.policy.expect("a policy");
    assert!(accepted.restricted);
    assert_eq!(policy.tty.expect("a rule").mode(), v1::rule::Mode::Disable);
    assert_eq!((contents.security.force_command.as_str(), contents.security.tty), ("theirs", Some(Mode::Disable)));
    // Whoever finds the connection's sessions later is held to it too, though no credentials come with that.
    let found = world.connections.pods_of("alice", "").await.expect("listed");
    assert_eq!(found.iter().map(|pod| &pod.contents.security).collect::<Vec<_>>(), [&contents.security]);
    // Nobody gets in by a policy that can't be read.
    let place = &found[0].place.pod;
    let note = |text: &str| serde_json::json!({"metadata": {"annotations": {"podbay.dev/policy": text}}});
    world.cluster.patch_pod(place, note("{\"tty\": 1}")).await.expect("patched");
    assert!(world.connections.pods_of("alice", "").await.expect("listed").is_empty());

    let (accepted, contents) = restricted(&world, 2, Restrictions::default()).await;
    assert!(!accepted.restricted);
    assert_eq!(contents.security, world.settings.security);
    let pods = world.cluster.pods();
    let noted =
        |pod: &&Pod| pod.metadata.annotations.as_ref().is_some_and(|notes| notes.contains_key("podbay.dev/policy"));
    assert_eq!((pods.len(), pods.iter().filter(noted).count()), (2, 1));

    // In mode session each program's pod has it, by the template in the handle.
    let world = World::new("session");
    let (_, contents) = restricted(&world, 1, by).await;
    let Target::Template(base) = &contents.target else { panic!("no template") };
    let note = &base.metadata.annotations.as_ref().expect("annotations")["podbay.dev/policy"];
    assert_eq!(serde_json::from_str::<Security>(note).expect("reads"), contents.security);
}
