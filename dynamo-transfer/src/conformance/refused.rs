//! What is refused, by whom, and that it has left no trace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::{LARGE, Memory, Pair, kind, pattern, usual, within};
use crate::{ErrorKind, HostBuffer, RemoteMemory, Rights, TransferGroup};

pub(super) async fn ranges_outside_are_refused_on_both_sides<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&pattern(7, 100), Rights::ReadOnly).await;
    for range in [(0, 101), (100, 1), (u64::MAX, 2)] {
        assert_eq!(kind(peer.descriptor([range])), ErrorKind::OutOfBounds);
    }
    // A peer that lies about the size is stopped by the owner.
    let mut lying = peer.clone();
    lying.len = 1 << 20;
    assert_eq!(kind(pair.read_one(&lying, (90, 20)).await), ErrorKind::OutOfBounds);
    pair.memory.close(region).await;
}

pub(super) async fn sides_of_different_size_are_refused<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&[0; 64], Rights::PeersWrite).await;
    let target = pair.source(&[1; 64]);
    for (here, there) in [(64, 63), (1, 64), (0, 1), (1, 0)] {
        let local = target.descriptor([(0, here)]).expect("inside");
        let remote = peer.descriptor([(0, there)]).expect("inside");
        let read = pair.initiator.read(local.clone(), remote.clone(), usual());
        let write = pair.initiator.write(local, remote, usual());
        for outcome in TransferGroup::from_iter([read, write]).settled().await {
            assert_eq!(kind(outcome), ErrorKind::InvalidArgument, "{here} and {there}");
        }
    }
    assert_eq!(target.close().await[0][..], [1; 64]);
    assert_eq!(pair.memory.close(region).await, [0; 64]);
}

pub(super) async fn a_write_that_is_refused_has_touched_nothing<M: Memory>(pair: &Pair<'_, M>) {
    // Brief, and of several stripes.
    for len in [16, 3 << 20] {
        let (revoked, stale) = pair.offer(&vec![0; len], Rights::PeersWrite).await;
        let (readable, denied) = pair.offer(&vec![0; len], Rights::OwnerWrites).await;
        pair.memory.close(revoked).await;
        let source = pair.source(&pattern(4, len));
        let refused = [(stale, ErrorKind::StaleRegion), (denied, ErrorKind::PermissionDenied)];
        for (region, kind) in refused {
            let write = pair.write(&source, &region, (0, len as u64), usual());
            let error = write.await.expect_err("refused");
            let left = (error.kind(), error.remote_memory());
            assert_eq!(left, (kind, RemoteMemory::Untouched), "{len} bytes: {error}");
        }
        assert!(pair.memory.close(readable).await.iter().all(|byte| *byte == 0));
    }
}

pub(super) async fn forged_tokens_are_refused<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&pattern(8, 16), Rights::ReadOnly).await;
    let mut forged = peer.clone();
    forged.token.proof ^= 1;
    assert_eq!(kind(pair.read_one(&forged, (0, 16)).await), ErrorKind::PermissionDenied);
    let mut stale = peer.clone();
    stale.token.generation ^= 1;
    assert_eq!(kind(pair.read_one(&stale, (0, 16)).await), ErrorKind::StaleRegion);
    let mut longer = peer.clone();
    longer.token.is_writable ^= true;
    assert_eq!(kind(pair.read_one(&longer, (0, 16)).await), ErrorKind::PermissionDenied);
    // Of another region of the same owner.
    let (other, mut swapped) = pair.offer(&pattern(8, 16), Rights::ReadOnly).await;
    swapped.token.proof = peer.token.proof;
    assert_eq!(kind(pair.read_one(&swapped, (0, 16)).await), ErrorKind::PermissionDenied);
    pair.read_one(&peer, (0, 16)).await.expect("the right one still works");
    pair.memory.close(region).await;
    pair.memory.close(other).await;
}

pub(super) async fn a_grant_may_be_less_than_the_region_and_may_expire<M: Memory>(
    pair: &Pair<'_, M>,
) {
    let region = pair.memory.register(pair.owner, &[&[0; 16]], Rights::PeersWrite).await;
    let grant = pair.memory.grant(&region);
    let peer = pair.load(&[grant, grant.read_only(), grant.with_ttl(Duration::ZERO)]);
    let source = pair.source(&pattern(11, 16));
    let write = |index: usize| pair.write(&source, &peer.regions()[index], (0, 16), usual());
    assert!(peer.regions()[0].is_writable() && !peer.regions()[1].is_writable());
    for index in [1, 2] {
        let error = write(index).await.expect_err("not granted");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    pair.read_one(&peer.regions()[1], (0, 16)).await.expect("reading is granted");
    let expired = pair.read_one(&peer.regions()[2], (0, 16)).await;
    assert_eq!(kind(expired), ErrorKind::PermissionDenied);
    assert_eq!(pair.memory.read(&region).await, [0; 16], "nothing refused was written");
    write(0).await.expect("writing is granted");
    assert_eq!(pair.memory.close(region).await, pattern(11, 16));
}

pub(super) async fn a_revoked_region_is_stale_and_its_memory_comes_back<M: Memory>(
    pair: &Pair<'_, M>,
) {
    let (region, peer) = pair.offer(&pattern(9, 16), Rights::ReadOnly).await;
    pair.read_one(&peer, (0, 16)).await.expect("reads");
    assert_eq!(pair.memory.close(region).await, pattern(9, 16));
    assert_eq!(kind(pair.read_one(&peer, (0, 16)).await), ErrorKind::StaleRegion);

    // The initiator's own region may go as well: the operation is refused before it starts.
    let (region, peer) = pair.offer(&pattern(9, 16), Rights::ReadOnly).await;
    let target = pair.target(16);
    let local = target.descriptor([(0, 16)]).expect("inside");
    drop(target);
    let remote = peer.descriptor([(0, 16)]).expect("inside");
    let read = pair.initiator.read(local, remote, usual()).await;
    assert_eq!(kind(read), ErrorKind::StaleRegion);
    pair.memory.close(region).await;

    // Memory of the host tells when it is freed.
    let freed = Arc::new(AtomicBool::new(false));
    let buffer = Watched { bytes: HostBuffer::new(16), freed: Arc::clone(&freed) };
    let region = pair.owner.register(vec![buffer]).expect("registers");
    let peer = pair.load(&[region.grant()]);
    pair.read_one(&peer.regions()[0], (0, 16)).await.expect("reads");
    let memory = region.close().await;
    assert!(!freed.load(Ordering::Relaxed) && memory.len() == 1);
    let region = pair.owner.register(memory).expect("registers again");
    assert_eq!(
        kind(pair.read_one(&peer.regions()[0], (0, 16)).await),
        ErrorKind::StaleRegion,
        "a new registration of the same memory is another region"
    );
    drop(region);
    assert!(freed.load(Ordering::Relaxed));
}

pub(super) async fn another_incarnation_is_stale<M: Memory>(pair: &Pair<'_, M>) {
    let (region, peer) = pair.offer(&pattern(10, 16), Rights::ReadOnly).await;
    let mut old = peer.clone();
    let mut address = (*old.peer).clone();
    address.incarnation ^= 1;
    old.peer = Arc::new(address);
    assert_eq!(kind(pair.read_one(&old, (0, 16)).await), ErrorKind::StaleRegion);
    pair.memory.close(region).await;
}

pub(super) async fn transfers_beyond_the_limit_are_refused_and_those_before_them_arrive<
    M: Memory,
>(
    pair: &Pair<'_, M>,
) {
    let bytes = pattern(17, LARGE);
    let (region, peer) = pair.offer(&bytes, Rights::ReadOnly).await;
    let target = pair.target(LARGE);
    let read = || pair.read(&target, &peer, (0, LARGE as u64), usual());
    let mut posted = TransferGroup::new();
    // Some of them may be over before the next one is posted.
    let refused = loop {
        assert!(posted.len() < 1000, "the initiator has a limit");
        let mut next = read();
        match futures::poll!(&mut next) {
            Poll::Ready(Err(error)) => break error,
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => posted.push(next),
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.is_retryable() && refused.message().contains("too many transfers"));
    let before = posted.len();
    assert_eq!(within(posted.all()).await.expect("those before it arrive").len(), before);
    within(read()).await.expect("there is room again");
    assert!(target.close().await[0][..] == bytes[..]);
    pair.memory.close(region).await;
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
