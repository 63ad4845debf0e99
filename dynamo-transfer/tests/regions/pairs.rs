//! Transfers between memory of every kind: host, pinned, of a device, and files.

use crate::lab::{KINDS, Lab, Link, load, random};
use dynamo_transfer::{BackendKind, ErrorKind, MemoryKind, Rights, TransferOptions};

/// Several bounce buffers, and an end that no page and no sector ends at.
const LEN: usize = (9 << 20) + 4097;

/// Odd ends, neighbours, pages, and one range longer than a bounce buffer; backwards at the end.
const LOCAL: [(u64, u64); 5] =
    [(1, 4095), (4096, 5 << 20), (6 << 20, 65_536), ((9 << 20) + 4000, 97), (7 << 20, 1 << 20)];
const REMOTE: [(u64, u64); 4] =
    [(4096, (4 << 20) + 4096), (100, 3001), (5 << 20, 2 << 20), (8 << 20, 62_631)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_arrive_exactly_between_all_kinds_in_one_agent() {
    all_pairs(Link::SameAgent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_arrive_exactly_between_all_kinds_in_one_process() {
    all_pairs(Link::SameFabric).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_arrive_exactly_between_all_kinds_over_tcp() {
    all_pairs(Link::Tcp).await;
}

async fn all_pairs(link: Link) {
    let lab = Lab::new(&format!("{link:?}"), None);
    let (owner, initiator) = link.agents().await;
    let mut seed = 1;
    for local_kind in KINDS {
        for remote_kind in KINDS {
            let (mut here, mut there) = (random(seed, LEN), random(seed + 1, LEN));
            seed += 2;
            let local = lab.register(&initiator, local_kind, &here, Rights::OwnerWrites).await;
            let remote = lab.register(&owner, remote_kind, &there, Rights::PeersWrite).await;
            assert_eq!((local.kind(), remote.kind()), (local_kind, remote_kind));
            let peer = load(&owner, &initiator, &remote);
            assert_eq!(peer.kind(), remote_kind);
            let remote_of =
                |ranges: &[(u64, u64)]| peer.descriptor(ranges.iter().copied()).unwrap();

            let (to, from) = (local.descriptor(&LOCAL).unwrap(), remote_of(&REMOTE));
            let read = initiator.read(to, from, TransferOptions::default()).await.unwrap();
            assert_eq!(read.bytes, LOCAL.iter().map(|range| range.1).sum::<u64>());
            assert_eq!(read.backend, backend(link, local_kind, remote_kind));
            copy((&there, &REMOTE), (&mut here, &LOCAL));

            // Elsewhere, so that what was read stays.
            let (from, to) = ([(17, 5 << 20)], [((4 << 20) + 3, 5 << 20)]);
            let write = (local.descriptor(&from).unwrap(), remote_of(&to));
            let write = initiator.write(write.0, write.1, TransferOptions::default());
            assert_eq!(write.await.unwrap().bytes, 5 << 20);
            copy((&here, &from), (&mut there, &to));

            let pair = format!("{local_kind:?} and {remote_kind:?} by {link:?}");
            assert!(local.close(&lab).await == here, "local of {pair}");
            assert!(remote.close(&lab).await == there, "remote of {pair}");
        }
    }
    owner.shutdown().await;
    initiator.shutdown().await;
    lab.end().await;
}

#[tokio::test]
async fn memory_of_two_devices_meets_in_a_bounce_buffer() {
    let (lab, other) = (Lab::new("first", None), Lab::new("second", None));
    for link in [Link::SameFabric, Link::Tcp] {
        let (owner, initiator) = link.agents().await;
        let (here, there) = (random(7, LEN), random(8, LEN));
        let kind = MemoryKind::Device(0);
        let local = lab.register(&initiator, kind, &here, Rights::OwnerWrites).await;
        let remote = other.register(&owner, kind, &there, Rights::PeersWrite).await;
        let pinned = other.register(&owner, MemoryKind::Pinned, &there, Rights::PeersWrite).await;
        let mut expected = here.clone();
        for (at, region) in [(1, &remote), (5 << 20, &pinned)] {
            let (range, peer) = ([(at, 4 << 20)], load(&owner, &initiator, region));
            let (to, from) = (local.descriptor(&range).unwrap(), peer.descriptor(range).unwrap());
            initiator.read(to, from, TransferOptions::default()).await.unwrap();
            copy((&there, &range), (&mut expected, &range));
        }
        let peer = load(&owner, &initiator, &remote);
        let whole = [(0, LEN as u64)];
        let (from, to) = (local.descriptor(&whole).unwrap(), peer.descriptor(whole).unwrap());
        initiator.write(from, to, TransferOptions::default()).await.unwrap();
        assert!(local.close(&lab).await == expected, "{link:?}");
        assert!(remote.close(&other).await == expected, "{link:?}");
        drop(pinned);
        owner.shutdown().await;
        initiator.shutdown().await;
    }
    lab.end().await;
    other.end().await;
}

/// Who is to move bytes between two kinds.
fn backend(link: Link, local: MemoryKind, remote: MemoryKind) -> BackendKind {
    let is_host = |kind| matches!(kind, MemoryKind::Host | MemoryKind::Pinned);
    let network = if cfg!(target_os = "linux") { BackendKind::Shm } else { BackendKind::Tcp };
    match (link, [local, remote]) {
        (Link::Tcp, _) if is_host(remote) => network,
        (Link::Tcp, _) => BackendKind::Tcp,
        (_, kinds) if kinds.contains(&MemoryKind::File) => BackendKind::File,
        (_, kinds) if kinds.contains(&MemoryKind::Device(0)) => BackendKind::Device,
        _ => BackendKind::Memcpy,
    }
}

/// Does to plain bytes what a transfer does.
fn copy((from, sources): (&[u8], &[(u64, u64)]), (to, targets): (&mut [u8], &[(u64, u64)])) {
    let small = |number: &u64| usize::try_from(*number).unwrap();
    let mut taken = Vec::new();
    sources.iter().for_each(|(at, len)| taken.extend_from_slice(&from[small(at)..][..small(len)]));
    for (at, len) in targets {
        let rest = taken.split_off(small(len));
        to[small(at)..][..small(len)].copy_from_slice(&taken);
        taken = rest;
    }
    assert!(taken.is_empty());
}

#[tokio::test]
async fn what_is_not_granted_is_refused_whatever_the_memory() {
    for link in [Link::SameFabric, Link::Tcp] {
        let lab = Lab::new(&format!("rights-{link:?}"), None);
        let (owner, initiator) = link.agents().await;
        for kind in KINDS {
            let local = lab.register(&initiator, MemoryKind::Host, &[1; 64], Rights::OwnerWrites);
            let local = local.await;
            let remote = lab.register(&owner, kind, &[2; 4096], Rights::OwnerWrites).await;
            let peer = load(&owner, &initiator, &remote);
            let range = [(0, 64)];
            let write = || {
                let to = peer.descriptor(range).unwrap();
                initiator.write(local.descriptor(&range).unwrap(), to, TransferOptions::default())
            };
            assert_eq!(write().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(peer.descriptor([(4090, 7)]).unwrap_err().kind(), ErrorKind::OutOfBounds);
            assert_eq!(remote.close(&lab).await, [2; 4096]);
            assert_eq!(write().await.unwrap_err().kind(), ErrorKind::StaleRegion);
            drop(local);
        }
        owner.shutdown().await;
        initiator.shutdown().await;
        lab.end().await;
    }
}

#[tokio::test]
async fn a_file_opened_for_reading_is_not_registered_for_writing_and_a_foreign_buffer_not_at_all() {
    use dynamo_transfer::file::{FileOptions, FileRegion};

    let (lab, other) = (Lab::new("foreign", None), Lab::new("other", None));
    let (owner, _) = Link::SameAgent.agents().await;
    let path = std::env::temp_dir().join(format!("dynamo-regions-read-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let file = FileRegion::open(&path, 8192, FileOptions::default().with_writable(false)).unwrap();
    let refused = owner.register_file(&lab.store, file.clone(), Rights::PeersWrite).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    let region = owner.register_file(&lab.store, file, Rights::ReadOnly).unwrap();
    assert_eq!(region.read_at(0, &mut [0; 4]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    drop(region);
    std::fs::remove_file(path).unwrap();

    let buffer = other.copier.allocate(64).unwrap();
    let refused = owner.register_device(&lab.copier, vec![buffer], Rights::ReadOnly).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    owner.shutdown().await;
    lab.end().await;
    other.end().await;
}
