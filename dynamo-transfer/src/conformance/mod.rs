//! The suite that every backend passes, over a pair of agents that it connects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::{
    Agent, BackendKind, BlockLayout, ErrorKind, HostBuffer, RemoteAgent, TransferGroup,
    TransferOptions,
};

/// Runs the whole suite: `initiator` reaches `owner` through `backend`.
///
/// # Panics
/// If the contract is broken.
pub async fn run(owner: &Agent, initiator: &Agent, backend: BackendKind) {
    run_over(owner, initiator, backend, HostBuffer::new).await;
}

/// Runs the whole suite over memory as `allocate` makes it.
///
/// # Panics
/// If the contract is broken.
pub async fn run_over(
    owner: &Agent,
    initiator: &Agent,
    backend: BackendKind,
    allocate: fn(usize) -> HostBuffer,
) {
    let agents = (owner, initiator);
    scattered_ranges_are_exact(agents, allocate, backend).await;
    writes_land_where_they_are_granted(agents, allocate).await;
    a_notification_comes_after_the_data(agents, allocate).await;
    ranges_outside_are_refused_on_both_sides(agents, allocate).await;
    forged_tokens_are_refused(agents, allocate).await;
    a_grant_may_be_less_than_the_region_and_may_expire(agents, allocate).await;
    blocks_of_a_layout_go_where_they_are_meant(agents, allocate).await;
    what_settles_together_is_waited_for_together(agents, allocate).await;
    a_revoked_region_is_stale_and_its_memory_comes_back(agents, allocate).await;
    another_incarnation_is_stale(agents, allocate).await;
}

type Allocate = fn(usize) -> HostBuffer;

async fn scattered_ranges_are_exact(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
    backend: BackendKind,
) {
    // Segments of odd sizes, larger than a chunk in sum; ranges cross segments on both sides.
    let source =
        vec![pattern(allocate, 1, 100_001), pattern(allocate, 2, 400_003), pattern(allocate, 3, 7)];
    let all: Vec<u8> = source.iter().flat_map(|segment| segment.iter().copied()).collect();
    let region = owner.register(source).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let target =
        initiator.register_mut(vec![allocate(300_000), allocate(300_000)]).expect("registers");
    let remote = [(499_990, 21), (0, 10), (99_990, 350_000)];
    let local = [(250_000, 100_000), (0, 31), (350_000, 250_000)];
    let report = initiator
        .read(
            target.descriptor(local).expect("inside"),
            peer.regions()[0].descriptor(remote).expect("inside"),
            TransferOptions::default(),
        )
        .await
        .expect("reads");
    assert_eq!((report.bytes, report.backend), (350_031, backend));
    let expected: Vec<u8> = pick(&all, &remote);
    let got: Vec<u8> = target.close().await.iter().flat_map(|b| b.iter().copied()).collect();
    assert_eq!(pick(&got, &local), expected);
    // The ranges leave one gap.
    assert!(got[31..250_000].iter().all(|byte| *byte == 0), "what is outside stays as it was");
}

async fn writes_land_where_they_are_granted(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let writable = owner.register_peer_writable(vec![allocate(64)]).expect("registers");
    let readable = owner.register_mut(vec![allocate(64)]).expect("registers");
    let peer = load(owner, initiator, &[writable.grant(), readable.grant()]);
    let source = initiator.register(vec![pattern(allocate, 4, 16)]).expect("registers");
    let write = |index: usize| {
        let local = source.descriptor([(0, 16)]).expect("inside");
        let remote = peer.regions()[index].descriptor([(8, 16)]).expect("inside");
        initiator.write(local, remote, TransferOptions::default())
    };
    write(0).await.expect("writes");
    assert_eq!(kind(write(1).await), ErrorKind::PermissionDenied);
    let written = writable.close().await;
    assert_eq!(written[0][8..24], pattern(allocate, 4, 16)[..]);
    assert!(written[0][..8].iter().chain(&written[0][24..]).all(|byte| *byte == 0));
    assert!(readable.close().await[0].iter().all(|byte| *byte == 0));

    // Reading into a region that was registered read-only is refused on this side.
    let region = owner.register(vec![pattern(allocate, 5, 16)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let read = initiator.read(
        source.descriptor([(0, 16)]).expect("inside"),
        peer.regions()[0].descriptor([(0, 16)]).expect("inside"),
        TransferOptions::default(),
    );
    assert_eq!(kind(read.await), ErrorKind::PermissionDenied);
}

async fn a_notification_comes_after_the_data(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let mut notifications = owner.notifications().expect("taken once");
    assert!(owner.notifications().is_err());
    // Many stripes: one that is told of too early has not arrived.
    const LEN: usize = 9 << 20;
    let region = owner.register_peer_writable(vec![allocate(LEN)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let source = initiator.register(vec![pattern(allocate, 6, LEN)]).expect("registers");
    let all = [(0, LEN as u64)];
    let written = initiator.write(
        source.descriptor(all).expect("inside"),
        peer.regions()[0].descriptor(all).expect("inside"),
        TransferOptions::default().with_notification(&b"written"[..]),
    );
    let heard = async {
        let notification = notifications.recv().await.expect("one notification");
        let mut bytes = vec![0; LEN];
        region.read_at(0, &mut bytes).expect("inside");
        (notification, bytes)
    };
    let (written, (notification, bytes)) = futures::future::join(written, heard).await;
    assert_eq!(written.expect("writes").bytes, LEN as u64);
    assert_eq!(notification.from, initiator.name());
    assert_eq!(notification.incarnation, initiator.incarnation());
    assert_eq!(notification.payload, Bytes::from_static(b"written"));
    assert!(bytes[..] == pattern(allocate, 6, LEN)[..], "all was there when it was heard");
    drop(region);

    initiator.notify(&peer, Bytes::from_static(b"alone")).await.expect("notifies");
    assert_eq!(notifications.recv().await.expect("one notification").payload, b"alone"[..]);
    let large = Bytes::from(vec![0; (64 << 10) + 1]);
    assert_eq!(kind(initiator.notify(&peer, large).await), ErrorKind::InvalidArgument);
}

async fn ranges_outside_are_refused_on_both_sides(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let region = owner.register(vec![pattern(allocate, 7, 100)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    for range in [(0, 101), (100, 1), (u64::MAX, 2)] {
        assert_eq!(kind(peer.regions()[0].descriptor([range])), ErrorKind::OutOfBounds);
    }
    // A peer that lies about the size is stopped by the owner.
    let mut lying = peer.regions()[0].clone();
    lying.len = 1 << 20;
    let read = read_one(initiator, &lying, (90, 20)).await;
    assert_eq!(kind(read), ErrorKind::OutOfBounds);
}

async fn forged_tokens_are_refused((owner, initiator): (&Agent, &Agent), allocate: Allocate) {
    let region = owner.register(vec![pattern(allocate, 8, 16)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let mut forged = peer.regions()[0].clone();
    forged.token.proof ^= 1;
    assert_eq!(kind(read_one(initiator, &forged, (0, 16)).await), ErrorKind::PermissionDenied);
    let mut stale = peer.regions()[0].clone();
    stale.token.generation ^= 1;
    assert_eq!(kind(read_one(initiator, &stale, (0, 16)).await), ErrorKind::StaleRegion);
    let mut longer = peer.regions()[0].clone();
    longer.token.is_writable ^= true;
    assert_eq!(kind(read_one(initiator, &longer, (0, 16)).await), ErrorKind::PermissionDenied);
    // Of another region of the same owner.
    let other = owner.register(vec![pattern(allocate, 8, 16)]).expect("registers");
    let others = load(owner, initiator, &[other.grant()]);
    let mut swapped = others.regions()[0].clone();
    swapped.token.proof = peer.regions()[0].token.proof;
    assert_eq!(kind(read_one(initiator, &swapped, (0, 16)).await), ErrorKind::PermissionDenied);
    read_one(initiator, &peer.regions()[0], (0, 16)).await.expect("the right one still works");
}

async fn a_grant_may_be_less_than_the_region_and_may_expire(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let region = owner.register_peer_writable(vec![allocate(16)]).expect("registers");
    let grant = region.grant();
    let grants = [grant, grant.read_only(), grant.with_ttl(Duration::ZERO)];
    let peer = initiator.load_metadata(&owner.metadata(grants).expect("of its own")).expect("good");
    let source = initiator.register(vec![pattern(allocate, 11, 16)]).expect("registers");
    let write = |index: usize| {
        let local = source.descriptor([(0, 16)]).expect("inside");
        let remote = peer.regions()[index].descriptor([(0, 16)]).expect("inside");
        initiator.write(local, remote, TransferOptions::default())
    };
    assert!(peer.regions()[0].is_writable() && !peer.regions()[1].is_writable());
    for index in [1, 2] {
        let error = write(index).await.expect_err("not granted");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    read_one(initiator, &peer.regions()[1], (0, 16)).await.expect("reading is granted");
    assert_eq!(
        kind(read_one(initiator, &peer.regions()[2], (0, 16)).await),
        ErrorKind::PermissionDenied
    );
    let mut bytes = [1; 16];
    region.read_at(0, &mut bytes).expect("inside");
    assert_eq!(bytes, [0; 16], "nothing refused was written");
    write(0).await.expect("writing is granted");
    assert_eq!(region.close().await[0][..], pattern(allocate, 11, 16)[..]);
}

async fn blocks_of_a_layout_go_where_they_are_meant(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    const BLOCKS: u32 = 600;
    let layout = BlockLayout::contiguous(1000).with_offset(24).with_stride(1024);
    let source = pattern(allocate, 12, 1024 * BLOCKS as usize);
    let expected = source.clone();
    let region = owner.register(vec![source]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let target = initiator.register_mut(vec![allocate(expected.len())]).expect("registers");
    // Every other block, backwards, behind one another.
    let remote: Vec<u32> = (0..BLOCKS / 2).rev().map(|index| index * 2).collect();
    let local: Vec<u32> = (0..BLOCKS / 2).collect();
    let blocks = target.blocks(BlockLayout::contiguous(1000), local).expect("inside");
    let remote = peer.regions()[0].blocks(layout, remote).expect("inside");
    assert_eq!(kind(peer.regions()[0].blocks(layout, vec![BLOCKS])), ErrorKind::OutOfBounds);
    let report = initiator.read(blocks, remote, TransferOptions::default()).await.expect("reads");
    assert_eq!(report.bytes, u64::from(BLOCKS / 2) * 1000);
    let got = target.close().await;
    for (index, block) in got[0].chunks(1000).take(BLOCKS as usize / 2).enumerate() {
        let from = 24 + (BLOCKS as usize - 2 - 2 * index) * 1024;
        assert!(block == &expected[from..from + 1000], "block {index}");
    }
}

async fn what_settles_together_is_waited_for_together(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let region = owner.register(vec![pattern(allocate, 13, 1 << 20)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let target = initiator.register_mut(vec![allocate(1 << 20)]).expect("registers");
    let mut forged = peer.regions()[0].clone();
    forged.token.proof ^= 1;
    let read = |region: &crate::RemoteRegion, index: u64| {
        // Of different sizes, so that outcomes can be told apart.
        let range = [(index << 18, (1 << 18) - index)];
        let (local, remote) = (target.descriptor(range), region.descriptor(range));
        let options = TransferOptions::default();
        initiator.read(local.expect("inside"), remote.expect("inside"), options)
    };
    let region = &peer.regions()[0];
    let mut group: TransferGroup =
        [read(&forged, 0), read(region, 1), read(region, 2)].into_iter().collect();
    group.push(read(region, 3));
    let outcomes = group.settled().await;
    // What has ended is there, though nothing but the group has waited for it.
    let mut got = vec![0; 1 << 20];
    target.read_at(0, &mut got).expect("inside");
    let outcomes: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.map(|report| report.bytes).map_err(|error| error.kind()))
        .collect();
    let bytes = |index: u64| Ok((1 << 18) - index);
    assert_eq!(outcomes, [Err(ErrorKind::PermissionDenied), bytes(1), bytes(2), bytes(3)]);
    assert!(got[..1 << 18].iter().all(|byte| *byte == 0), "what was refused");
    let expected = pattern(allocate, 13, 1 << 20);
    for index in 1..4 {
        let range = (index << 18)..((index + 1) << 18) - index;
        assert!(got[range.clone()] == expected[range], "the read of index {index}");
    }
}

async fn a_revoked_region_is_stale_and_its_memory_comes_back(
    (owner, initiator): (&Agent, &Agent),
    allocate: Allocate,
) {
    let freed = Arc::new(AtomicBool::new(false));
    let buffer = Watched { bytes: pattern(allocate, 9, 16), freed: Arc::clone(&freed) };
    let region = owner.register(vec![buffer]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    read_one(initiator, &peer.regions()[0], (0, 16)).await.expect("reads");
    let memory = region.close().await;
    assert!(!freed.load(Ordering::Relaxed) && memory.len() == 1);
    assert_eq!(
        kind(read_one(initiator, &peer.regions()[0], (0, 16)).await),
        ErrorKind::StaleRegion
    );

    let region = owner.register(memory).expect("registers again");
    assert_eq!(
        kind(read_one(initiator, &peer.regions()[0], (0, 16)).await),
        ErrorKind::StaleRegion,
        "a new registration of the same memory is another region"
    );
    drop(region);
    assert!(freed.load(Ordering::Relaxed));

    // The initiator's own region may go as well: the operation is refused before it starts.
    let region = owner.register(vec![pattern(allocate, 9, 16)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let target = initiator.register_mut(vec![allocate(16)]).expect("registers");
    let local = target.descriptor([(0, 16)]).expect("inside");
    drop(target);
    let remote = peer.regions()[0].descriptor([(0, 16)]).expect("inside");
    let read = initiator.read(local, remote, TransferOptions::default()).await;
    assert_eq!(kind(read), ErrorKind::StaleRegion);
}

async fn another_incarnation_is_stale((owner, initiator): (&Agent, &Agent), allocate: Allocate) {
    let region = owner.register(vec![pattern(allocate, 10, 16)]).expect("registers");
    let peer = load(owner, initiator, &[region.grant()]);
    let mut old = peer.regions()[0].clone();
    let mut address = (*old.peer).clone();
    address.incarnation ^= 1;
    old.peer = Arc::new(address);
    assert_eq!(kind(read_one(initiator, &old, (0, 16)).await), ErrorKind::StaleRegion);
}

async fn read_one(
    initiator: &Agent,
    region: &crate::RemoteRegion,
    range: (u64, u64),
) -> crate::Result<crate::TransferReport> {
    let len = usize::try_from(range.1).expect("small");
    let target = initiator.register_mut(vec![HostBuffer::new(len)])?;
    let local = target.descriptor([(0, range.1)])?;
    initiator.read(local, region.descriptor([range])?, TransferOptions::default()).await
}

fn load(owner: &Agent, initiator: &Agent, grants: &[crate::Grant]) -> RemoteAgent {
    initiator
        .load_metadata(&owner.metadata(grants.iter().copied()).expect("of its own"))
        .expect("good")
}

fn kind<T>(result: crate::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

fn pattern(allocate: Allocate, seed: u8, len: usize) -> HostBuffer {
    let mut buffer = allocate(len);
    // Never zero, so that untouched bytes can be told apart.
    (0u8..=250)
        .map(|i| i.wrapping_add(seed) | 1)
        .cycle()
        .zip(buffer.iter_mut())
        .for_each(|(v, b)| *b = v);
    buffer
}

fn pick(bytes: &[u8], ranges: &[(u64, u64)]) -> Vec<u8> {
    let range = |&(offset, len): &(u64, u64)| {
        let start = usize::try_from(offset).expect("small");
        bytes[start..start + usize::try_from(len).expect("small")].iter().copied()
    };
    ranges.iter().flat_map(range).collect()
}

/// Memory that says when it is freed.
struct Watched {
    bytes: HostBuffer,
    freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::Relaxed);
    }
}
