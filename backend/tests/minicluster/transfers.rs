//! Bytes: whole, side by side, and at once.

use crate::world::*;
use ring::digest::{SHA256, digest};

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_whole_both_ways_though_the_runtime_cuts_bare_ones() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let data = bytes(16 * 1024 * 1024);
    let sum = hex(digest(&SHA256, &data).as_ref());
    // The program closes its stdout: a bare exec loses the rest of its stdin (the minicluster plays containerd's defect).
    let upload = world.run(&handle, &exec("cat >up && exec sha256sum up"), &data).await;
    assert_eq!((upload.text(), upload.exit), (format!("{sum}  up\n"), Some(End::Code(0))));
    let all = world.run(&handle, &exec("cat >up2 2>/dev/null"), &data).await;
    assert_eq!(all.exit, Some(End::Code(0)));
    let down = world.run(&handle, &exec("cat up2"), b"").await;
    assert_eq!((down.stdout.len(), down.stdout == data), (data.len(), true));
    // A filter that writes twice what it reads.
    let all = world.run(&handle, &exec("xxd -p -c 64 | tr -d '\\n'"), &data[..4 * 1024 * 1024]).await;
    if all.exit != Some(End::Code(127)) {
        assert_eq!(all.stdout.len(), 8 * 1024 * 1024, "{}", String::from_utf8_lossy(&all.stderr));
    }
    world.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_while_one_reads_nothing() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let mut stuck = world.open(&handle, &v1::Open { stdout_credit: 0, ..exec("yes") });
    stuck.started().await;
    let runs = (0..20).map(|i| {
        let (world, handle) = (&world, &handle);
        async move {
            let text =
                world.run(handle, &exec("cat; echo done"), format!("{i} ").repeat(10_000).as_bytes()).await.text();
            assert_eq!(text, format!("{i} ").repeat(10_000) + "done\n");
        }
    });
    futures::future::join_all(runs).await;
    drop(stuck);
    world.end(1).await;
}

/// Nagle's algorithm would hold the second key back until the first is acknowledged: 40 ms, each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let world = World::demo().await;
    let handle = world.connect(1).await.handle;
    let mut session = world.open(&handle, &exec("echo ready; while read line; do echo $line; done"));
    session.started().await;
    let mut seen = Vec::new();
    session.until(&mut seen, "ready\n").await;
    let (mut offset, mut quickest) = (0, PATIENCE);
    for line in 0..40 {
        let began = Instant::now();
        for key in [format!("{line}."), "\n".to_owned()] {
            let data = v1::Data { stream: Stream::Stdin.into(), offset, data: key.clone().into() };
            offset += key.len() as u64;
            session.send(Frame::Data(data)).await;
            // Two keys that are there at once would go out together.
            sleep(Duration::from_millis(2)).await;
        }
        session.until(&mut seen, &format!("{line}.\n")).await;
        // A connection's first packets are acknowledged at once.
        quickest = if line < 20 { PATIENCE } else { quickest.min(began.elapsed()) };
    }
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");
    drop(session);
    world.end(1).await;
}
