//! What becomes of transfers when a file or a device fails, a region is revoked, or nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::eventually::eventually;
use crate::lab::{Lab, Link, Region, load};
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};
use dynamo_transfer::{
    Agent, ErrorKind, MemoryKind, RemoteMemory, RemoteRegion, Rights, Transfer, TransferOptions,
};

const LEN: usize = 6 << 20;
const WHOLE: [(u64, u64); 1] = [(0, LEN as u64)];
const LINKS: [Link; 2] = [Link::SameFabric, Link::Tcp];
const DEVICE: MemoryKind = MemoryKind::Device(0);

fn read(initiator: &Agent, local: &Region, remote: &RemoteRegion) -> Transfer {
    let (local, remote) = (local.descriptor(&WHOLE).unwrap(), remote.descriptor(WHOLE).unwrap());
    initiator.read(local, remote, TransferOptions::default())
}

fn write(initiator: &Agent, local: &Region, remote: &RemoteRegion) -> Transfer {
    let (local, remote) = (local.descriptor(&WHOLE).unwrap(), remote.descriptor(WHOLE).unwrap());
    initiator.write(local, remote, TransferOptions::default())
}

async fn settled(initiator: &Agent) {
    eventually("all have settled", || initiator.stats().in_flight() == 0).await;
}

/// A lab whose files fail, and what switches that on.
fn failing(name: &str, fault: impl Fn(FileAct) -> FileFault + Send + 'static) -> (Lab, Switch) {
    let is_on = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_on);
    let faults = FileFaults::new(move |call| match is_on.load(Ordering::Relaxed) {
        true => fault(call.act),
        false => FileFault::Pass,
    });
    (Lab::new(name, Some(faults.clone())), Switch { is_on: switch, faults })
}

struct Switch {
    is_on: Arc<AtomicBool>,
    faults: FileFaults,
}

impl Switch {
    fn on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    async fn held(&self) {
        eventually("the engine holds a call", || self.faults.held() > 0).await;
    }

    fn release(&self) {
        self.is_on.store(false, Ordering::Relaxed);
        self.faults.release();
    }
}

#[tokio::test]
async fn errors_of_files_come_out_as_what_they_are_wherever_the_file_is() {
    for link in LINKS {
        let (lab, faults) = failing(&format!("typed-{link:?}"), |act| match act {
            FileAct::Read => FileFault::Fail(libc::EIO),
            _ => FileFault::Fail(libc::ENOSPC),
        });
        let (owner, initiator) = link.agents().await;
        // Directly, from and to a bounce buffer; at the owner's and at the initiator's end.
        for (here, there) in [
            (MemoryKind::Host, MemoryKind::File),
            (DEVICE, MemoryKind::File),
            (MemoryKind::File, MemoryKind::Host),
            (MemoryKind::File, DEVICE),
        ] {
            let bytes = vec![5; LEN];
            let local = lab.register(&initiator, here, &bytes, Rights::OwnerWrites).await;
            let remote = lab.register(&owner, there, &bytes, Rights::PeersWrite).await;
            let peer = load(&owner, &initiator, &remote);
            read(&initiator, &local, &peer).await.unwrap();
            faults.on();
            let is_remote = there == MemoryKind::File;
            let (reading, writing) = match is_remote {
                true => (ErrorKind::Io, ErrorKind::StorageFull),
                // The local file is what is written to then.
                false => (ErrorKind::StorageFull, ErrorKind::Io),
            };
            let pair = format!("{here:?} and {there:?} by {link:?}");
            let error = read(&initiator, &local, &peer).await.unwrap_err();
            assert_eq!(error.kind(), reading, "{pair}: {error}");
            let error = write(&initiator, &local, &peer).await.unwrap_err();
            assert_eq!(error.kind(), writing, "{pair}: {error}");
            // An engine that goes directly from one to the other has begun with both.
            let has_begun = is_remote || (link, there) == (Link::SameFabric, MemoryKind::Host);
            let left = if has_begun { RemoteMemory::Partial } else { RemoteMemory::Untouched };
            assert_eq!(error.remote_memory(), left, "{pair}");
            faults.release();
            write(&initiator, &local, &peer).await.unwrap();
            local.close(&lab).await;
            assert!(remote.close(&lab).await == bytes, "{pair}");
        }
        owner.shutdown().await;
        initiator.shutdown().await;
        lab.end().await;
    }
}

#[tokio::test]
async fn a_file_that_has_become_shorter_is_an_error_of_io() {
    for link in LINKS {
        let lab = Lab::new(&format!("short-{link:?}"), None);
        let (owner, initiator) = link.agents().await;
        let bytes = vec![5; LEN];
        let local = lab.register(&initiator, MemoryKind::Host, &bytes, Rights::OwnerWrites).await;
        let remote = lab.register(&owner, MemoryKind::File, &bytes, Rights::PeersWrite).await;
        let peer = load(&owner, &initiator, &remote);
        let Region::File(_, path) = &remote else { unreachable!("it is a file") };
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
        let error = read(&initiator, &local, &peer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        drop((local, remote));
        owner.shutdown().await;
        initiator.shutdown().await;
        lab.end().await;
    }
}

#[tokio::test]
async fn a_region_revoked_under_a_transfer_refuses_and_comes_back_when_that_has_ended() {
    for link in LINKS {
        let (lab, faults) = failing(&format!("revoked-{link:?}"), |_| FileFault::Hold);
        let (owner, initiator) = link.agents().await;
        let bytes = vec![5; LEN];
        let local = lab.register(&initiator, MemoryKind::Host, &bytes, Rights::OwnerWrites).await;
        let remote = lab.register(&owner, MemoryKind::File, &bytes, Rights::PeersWrite).await;
        let peer = load(&owner, &initiator, &remote);
        faults.on();
        let transfer = read(&initiator, &local, &peer);
        faults.held().await;
        let mut closing = Box::pin(remote.close(&lab));
        assert!(futures::poll!(&mut closing).is_pending());
        let refused = read(&initiator, &local, &peer).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StaleRegion, "{link:?}");
        faults.release();
        assert!(closing.await == bytes);
        // Over TCP there are stripes that come after it was revoked.
        match (link, transfer.await) {
            (Link::Tcp, outcome) => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::StaleRegion),
            (_, outcome) => assert_eq!(outcome.unwrap().bytes, LEN as u64),
        }
        drop(local);
        owner.shutdown().await;
        initiator.shutdown().await;
        lab.end().await;
    }
}

#[tokio::test]
async fn a_dropped_transfer_keeps_what_engines_touch_until_they_have_ended() {
    let (lab, faults) = failing("dropped", |_| FileFault::Hold);
    let (owner, initiator) = Link::SameFabric.agents().await;
    let bytes = vec![5; LEN];
    // The kernel has the host's memory, or a bounce buffer that the next one does not get.
    for kind in [MemoryKind::Host, DEVICE] {
        let local = lab.register(&initiator, kind, &bytes, Rights::OwnerWrites).await;
        let remote = lab.register(&owner, MemoryKind::File, &bytes, Rights::PeersWrite).await;
        let peer = load(&owner, &initiator, &remote);
        faults.on();
        let transfer = read(&initiator, &local, &peer);
        faults.held().await;
        drop(transfer);
        let mut closing = Box::pin(remote.close(&lab));
        assert!(futures::poll!(&mut closing).is_pending());
        settled(&initiator).await;
        assert!(futures::poll!(&mut closing).is_pending(), "the kernel still has {kind:?}");
        faults.release();
        assert!(closing.await == bytes);
        local.close(&lab).await;
    }
    // Likewise copies of a device: directly to pinned memory, and over a bounce buffer.
    for kind in [MemoryKind::Pinned, MemoryKind::Host] {
        let local = lab.register(&initiator, kind, &bytes, Rights::OwnerWrites).await;
        let remote = lab.register(&owner, DEVICE, &bytes, Rights::PeersWrite).await;
        let peer = load(&owner, &initiator, &remote);
        lab.device.pause();
        let transfer = read(&initiator, &local, &peer);
        eventually("the device has a copy", || lab.device.waiting() > 0).await;
        drop(transfer);
        settled(&initiator).await;
        let mut closing = Box::pin(remote.close(&lab));
        assert!(futures::poll!(&mut closing).is_pending(), "the device still has {kind:?}");
        lab.device.resume();
        assert!(closing.await == bytes);
        local.close(&lab).await;
    }
    owner.shutdown().await;
    initiator.shutdown().await;
    lab.end().await;
}

#[tokio::test]
async fn a_lost_device_is_unavailable_and_files_go_on() {
    for link in LINKS {
        let lab = Lab::new(&format!("lost-{link:?}"), None);
        let (owner, initiator) = link.agents().await;
        let bytes = vec![5; LEN];
        let local = lab.register(&initiator, MemoryKind::Host, &bytes, Rights::OwnerWrites).await;
        let remote = lab.register(&owner, DEVICE, &bytes, Rights::PeersWrite).await;
        let file = lab.register(&owner, MemoryKind::File, &bytes, Rights::PeersWrite).await;
        let peer = load(&owner, &initiator, &remote);
        read(&initiator, &local, &peer).await.unwrap();
        lab.device.lose("the bus is empty");
        // More often than there are bounce buffers.
        for _ in 0..40 {
            let error = read(&initiator, &local, &peer).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BackendUnavailable, "{error}");
            assert_eq!(error.message(), "the bus is empty");
        }
        let peer = load(&owner, &initiator, &file);
        read(&initiator, &local, &peer).await.unwrap();
        // Nothing of it is in the hands of the device.
        let Region::Device(remote, _) = remote else { unreachable!("it is of a device") };
        assert_eq!(remote.close().await.len(), 2);
        assert!(local.close(&lab).await == bytes);
        drop(file);
        owner.shutdown().await;
        initiator.shutdown().await;
    }
}
