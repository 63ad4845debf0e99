//! What arrives, and where.

use std::task::Poll;

use bytes::Bytes;

use super::{LARGE, Memory, Pair, kind, pattern, pick, usual};
use crate::{BlockLayout, ErrorKind, Priority, Progress, Rights, TransferGroup};

pub(super) async fn scattered_ranges_are_exact<M: Memory>(pair: &Pair<'_, M>) {
    // Segments of odd sizes, larger than a chunk in sum; ranges cross segments on both sides.
    let source = [pattern(1, 100_001), pattern(2, 400_003), pattern(3, 7)];
    let segments: Vec<_> = source.iter().map(Vec::as_slice).collect();
    let region = pair.memory.register(pair.owner, &segments, Rights::ReadOnly).await;
    let peer = pair.load(&[pair.memory.grant(&region)]);
    let allocate = || pair.memory.allocate(300_000);
    let target = pair.initiator.register_mut(vec![allocate(), allocate()]).expect("registers");
    let remote = [(499_990, 21), (0, 10), (99_990, 350_000)];
    let local = [(250_000, 100_000), (0, 31), (350_000, 250_000)];
    let report = pair.initiator.read(
        target.descriptor(local).expect("inside"),
        peer.regions()[0].descriptor(remote).expect("inside"),
        usual(),
    );
    let report = report.await.expect("reads");
    assert_eq!((report.bytes, report.backend), (350_031, pair.backend));
    let got: Vec<u8> = target.close().await.iter().flat_map(|b| b.iter().copied()).collect();
    assert_eq!(pick(&got, &local), pick(&source.concat(), &remote));
    // The ranges leave one gap.
    assert!(got[31..250_000].iter().all(|byte| *byte == 0), "what is outside stays as it was");
    pair.memory.close(region).await;
}

pub(super) async fn writes_land_where_they_are_granted<M: Memory>(pair: &Pair<'_, M>) {
    let (writable, granted) = pair.offer(&[0; 64], Rights::PeersWrite).await;
    let (readable, other) = pair.offer(&[0; 64], Rights::OwnerWrites).await;
    let source = pair.initiator.register(vec![pattern(4, 16)]).expect("registers");
    let write = |remote: &crate::RemoteRegion| {
        let local = source.descriptor([(0, 16)]).expect("inside");
        let remote = remote.descriptor([(8, 16)]).expect("inside");
        pair.initiator.write(local, remote, usual())
    };
    write(&granted).await.expect("writes");
    assert_eq!(kind(write(&other).await), ErrorKind::PermissionDenied);
    let written = pair.memory.close(writable).await;
    assert_eq!(written[8..24], pattern(4, 16));
    assert!(written[..8].iter().chain(&written[24..]).all(|byte| *byte == 0));
    assert_eq!(pair.memory.close(readable).await, [0; 64]);

    // Reading into a region that was registered read-only is refused on this side.
    let (region, peer) = pair.offer(&pattern(5, 16), Rights::ReadOnly).await;
    let read = pair.initiator.read(
        source.descriptor([(0, 16)]).expect("inside"),
        peer.descriptor([(0, 16)]).expect("inside"),
        usual(),
    );
    assert_eq!(kind(read.await), ErrorKind::PermissionDenied);
    pair.memory.close(region).await;
}

pub(super) async fn blocks_of_a_layout_go_where_they_are_meant<M: Memory>(pair: &Pair<'_, M>) {
    const BLOCKS: u32 = 600;
    let layout = BlockLayout::contiguous(1000).with_offset(24).with_stride(1024);
    let expected = pattern(12, 1024 * BLOCKS as usize);
    let (region, peer) = pair.offer(&expected, Rights::ReadOnly).await;
    let target = pair.target(expected.len());
    // Every other block, backwards, behind one another.
    let remote: Vec<u32> = (0..BLOCKS / 2).rev().map(|index| index * 2).collect();
    let blocks = target.blocks(BlockLayout::contiguous(1000), 0..BLOCKS / 2).expect("inside");
    let remote = peer.blocks(layout, remote).expect("inside");
    assert_eq!(kind(peer.blocks(layout, vec![BLOCKS])), ErrorKind::OutOfBounds);
    let report = pair.initiator.read(blocks, remote, usual()).await.expect("reads");
    assert_eq!(report.bytes, u64::from(BLOCKS / 2) * 1000);
    let got = target.close().await;
    for (index, block) in got[0].chunks(1000).take(BLOCKS as usize / 2).enumerate() {
        let from = 24 + (BLOCKS as usize - 2 - 2 * index) * 1024;
        assert!(block == &expected[from..from + 1000], "block {index}");
    }
    pair.memory.close(region).await;
}

pub(super) async fn transfers_of_every_priority_arrive<M: Memory>(pair: &Pair<'_, M>) {
    const EACH: usize = 3 << 20;
    let bytes = pattern(14, 3 * EACH);
    let (region, peer) = pair.offer(&bytes, Rights::ReadOnly).await;
    let target = pair.target(bytes.len());
    let priorities = [Priority::Low, Priority::Normal, Priority::High].into_iter();
    let reads = (0..).zip(priorities).map(|(index, priority)| {
        let range = (index * EACH as u64, EACH as u64);
        pair.read(&target, &peer, range, usual().with_priority(priority))
    });
    let reports = reads.collect::<TransferGroup>().all().await.expect("all arrive");
    assert!(reports.iter().all(|report| report.bytes == EACH as u64), "{reports:?}");
    assert!(target.close().await[0][..] == bytes[..]);
    pair.memory.close(region).await;
}

pub(super) async fn progress_only_grows_and_ends_at_the_total<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&pattern(15, LARGE), Rights::ReadOnly).await;
    let target = pair.target(LARGE);
    let mut read = pair.read(&target, &peer, (0, LARGE as u64), usual());
    let mut seen = 0;
    let outcome = loop {
        let Progress { bytes_moved, bytes_total } = read.progress();
        assert!((seen..=LARGE as u64).contains(&bytes_moved), "{bytes_moved} after {seen}");
        // None before it is planned.
        assert!([0, LARGE as u64].contains(&bytes_total) && bytes_moved <= bytes_total);
        seen = bytes_moved;
        if let Poll::Ready(outcome) = futures::poll!(&mut read) {
            break outcome;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(outcome.expect("reads").bytes, LARGE as u64);
    let end = Progress { bytes_moved: LARGE as u64, bytes_total: LARGE as u64 };
    assert_eq!(read.progress(), end);
    drop(target);
    pair.memory.close(region).await;
}

pub(super) async fn nothing_is_moved_for_no_bytes<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&[0; 64], Rights::PeersWrite).await;
    let target = pair.target(64);
    for ranges in [vec![], vec![(0, 0)], vec![(64, 0), (8, 0)]] {
        let local = target.descriptor(ranges.iter().copied()).expect("inside");
        let remote = peer.descriptor(ranges).expect("inside");
        assert!(local.is_empty() && remote.is_empty());
        let read = pair.initiator.read(local.clone(), remote.clone(), usual());
        let write = pair.initiator.write(local, remote, usual());
        for report in TransferGroup::from_iter([read, write]).all().await.expect("nothing to do") {
            assert_eq!((report.bytes, report.chunks), (0, 0));
        }
    }
    assert_eq!(target.close().await[0][..], [0; 64]);
    assert_eq!(pair.memory.close(region).await, [0; 64]);
}

/// Reading into ranges that overlap is the caller's mistake: no more than those ranges has it.
pub(super) async fn ranges_that_overlap_are_left_with_a_mix_of_what_was_meant_for_them<
    M: Memory,
>(
    pair: &Pair<'_, M>,
) {
    let bytes = pattern(16, 200_000);
    let (region, peer) = pair.offer(&bytes, Rights::PeersWrite).await;
    let target = pair.target(200_000);
    let overlapping = [(10, 100_000), (50_010, 100_000)];
    let local = target.descriptor(overlapping).expect("inside");
    let remote = peer.descriptor([(0, 200_000)]).expect("inside");
    let report = pair.initiator.read(local, remote.clone(), usual()).await.expect("reads");
    assert_eq!(report.bytes, 200_000);
    let got = target.close().await.remove(0);
    for (index, byte) in got.iter().enumerate() {
        let meant = overlapping.iter().zip([0, 100_000]).filter_map(|(&(start, len), from)| {
            let inside = (index as u64).checked_sub(start).filter(|inside| *inside < len)?;
            Some(bytes[from + super::at(inside)])
        });
        let meant: Vec<u8> = meant.collect();
        assert!(meant.contains(byte) || (meant.is_empty() && *byte == 0), "byte {index}: {byte}");
    }
    // What is read from may overlap.
    let source = pair.source(&bytes);
    let local = source.descriptor(overlapping).expect("inside");
    pair.initiator.write(local, remote, usual()).await.expect("writes");
    assert!(pair.memory.close(region).await == pick(&bytes, &overlapping));
}

pub(super) async fn a_notification_comes_after_the_data<M: Memory>(pair: &Pair<'_, M>) {
    let Pair { owner, initiator, .. } = pair;
    let mut notifications = owner.notifications().expect("taken once");
    assert!(owner.notifications().is_err());
    // Many stripes: one that is told of too early has not arrived.
    const LEN: usize = 9 << 20;
    let (region, peer) = pair.offer(&vec![0; LEN], Rights::PeersWrite).await;
    let source = pair.source(&pattern(6, LEN));
    let options = usual().with_notification(&b"written"[..]);
    let written = pair.write(&source, &peer, (0, LEN as u64), options);
    let heard = async {
        let notification = notifications.recv().await.expect("one notification");
        (notification, pair.memory.read(&region).await)
    };
    let (written, (notification, bytes)) = futures::future::join(written, heard).await;
    assert_eq!(written.expect("writes").bytes, LEN as u64);
    assert_eq!(notification.from, initiator.name());
    assert_eq!(notification.incarnation, initiator.incarnation());
    assert_eq!(notification.payload, Bytes::from_static(b"written"));
    assert!(bytes == pattern(6, LEN), "all was there when it was heard");
    pair.memory.close(region).await;

    let peer = pair.load(&[]);
    initiator.notify(&peer, Bytes::from_static(b"alone")).await.expect("notifies");
    assert_eq!(notifications.recv().await.expect("one notification").payload, b"alone"[..]);
    let large = Bytes::from(vec![0; (64 << 10) + 1]);
    assert_eq!(kind(initiator.notify(&peer, large).await), ErrorKind::InvalidArgument);
}
