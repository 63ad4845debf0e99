//! Memory comes back when nobody copies any more, whoever else does what.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use rustix::net::Shutdown;

use super::*;
use crate::backend::shm::ShmClient;
use crate::backend::{Backend, Copies, Operation, Terms};
use crate::descriptor::Ranges;
use crate::memory::{Lease, Leased};

/// An initiator whose parts the test holds, and its memory.
struct Initiator {
    client: Arc<ShmClient>,
    table: Arc<RegionTable>,
    local: RegisteredRegion<HostBuffer>,
}

impl Initiator {
    fn new(owner: &Owner) -> Self {
        let client = ShmClient::new(
            &owner.inbound,
            Copies::new(&owner.tasks),
            &owner.tasks,
            &owner.shutdown,
        );
        let table = Arc::new(RegionTable::new().unwrap());
        let local = vec![HostBuffer::new(8)];
        let local = RegisteredRegion::writable(&table, local, Rights::OwnerWrites).unwrap();
        Self { client, table, local }
    }

    fn lease(&self) -> Lease {
        let leased = self.table.lease_local(self.local.grant().id, Right::Read, &Arc::default());
        match leased.unwrap() {
            Leased::Host(lease) => lease,
            Leased::Far(_) => unreachable!("host memory was registered"),
        }
    }

    fn reading(&self, remote: &RemoteRegion) -> Arc<Operation> {
        let terms = Terms {
            priority: crate::Priority::default(),
            is_checked: false,
            cancel: CancellationToken::new(),
            progress: Arc::default(),
        };
        let local = (self.lease(), Ranges::unchecked([(0, 8)]));
        let remote = remote.descriptor([(0, 8)]).unwrap();
        Arc::new(Operation::new(Right::Read, local, remote, terms).unwrap())
    }

    async fn read(&self, remote: &RemoteRegion) -> Result<()> {
        self.client.run(self.reading(remote)).await
    }

    /// Begins an operation on a thread of its own, and stops it in the middle of its only stripe.
    async fn halted(&self, operation: &Arc<Operation>) -> Halted {
        let ((held, is_held), (go_on, goes_on)) = (channel(), channel::<()>());
        let lease = self.lease();
        // Who reads memory keeps those away who write it.
        let holder = std::thread::spawn(move || {
            lease.memory().gather(std::iter::once((0, 8)), |_| {
                held.send(()).unwrap();
                let _ = goes_on.recv();
            });
        });
        is_held.recv().unwrap();
        let (client, copied) = (Arc::clone(&self.client), Arc::clone(operation));
        let copy = std::thread::spawn(move || client.run_brief(&copied));
        let begun = async {
            while !operation.progress.has_begun() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("the region is open");
        Halted { go_on, holder, copy }
    }
}

/// A copy that has entered its slot.
struct Halted {
    go_on: Sender<()>,
    holder: JoinHandle<()>,
    copy: JoinHandle<Option<Result<()>>>,
}

impl Halted {
    fn go_on(self) -> Option<Result<()>> {
        self.go_on.send(()).unwrap();
        self.holder.join().unwrap();
        self.copy.join().unwrap()
    }
}

/// Leaves the slot of what is open as if in the middle of a copy.
fn stay_in(link: &Link, slot: u32) {
    let copying = link.enter(slot).unwrap().unwrap();
    #[expect(
        clippy::mem_forget,
        reason = "a process that is stopped does not say that it is done"
    )]
    std::mem::forget(copying);
}

#[tokio::test]
async fn closing_waits_for_a_copy_in_progress_and_none_begins_meanwhile() {
    for buffer in both() {
        let owner = Owner::new(Secret::new().unwrap(), false).await;
        let region = owner.register(buffer);
        let remote = owner.granted(region.grant());
        let (link, slot, open) = owner.open(&remote).await;
        let copying = link.enter(slot).unwrap().unwrap();
        let mut closing = Box::pin(region.close());
        assert!(futures::poll!(&mut closing).is_pending());
        revoked(&open).await;
        assert!(futures::poll!(&mut closing).is_pending(), "a copy is in progress");
        assert!(link.enter(slot).unwrap().is_none());
        drop(copying);
        drop(open);
        let memory = tokio::time::timeout(PATIENCE, closing).await.expect("it is done");
        assert_eq!(memory[0][..], [7; 8]);
    }
}

#[tokio::test]
async fn closing_does_not_wait_for_a_region_that_is_only_open() {
    let owner = Owner::new(Secret::new().unwrap(), false).await;
    let region = owner.register(HostBuffer::shared(8).unwrap());
    let (_link, _, open) = owner.open(&owner.granted(region.grant())).await;
    assert!(open.is_usable());
    tokio::time::timeout(PATIENCE, region.close()).await.expect("nobody copies");
    assert!(!open.is_usable());
}

#[tokio::test]
async fn a_peer_that_dies_in_a_copy_gives_the_memory_back() {
    let owner = Owner::new(Secret::new().unwrap(), false).await;
    let region = owner.register(HostBuffer::new(8));
    let (link, slot, open) = owner.open(&owner.granted(region.grant())).await;
    stay_in(&link, slot);
    // The end of a process is the end of its sockets.
    rustix::net::shutdown(link.stream(), Shutdown::Both).unwrap();
    tokio::time::timeout(PATIENCE, region.close()).await.expect("its sockets are closed");
    drop(open);
}

#[tokio::test]
async fn closing_under_the_last_stripe_of_a_copy_ends_though_the_peer_asks_for_nothing_more() {
    for is_given_up in [false, true] {
        for buffer in both() {
            let owner = Owner::new(Secret::new().unwrap(), false).await;
            let (region, initiator) = (owner.register(buffer), Initiator::new(&owner));
            let remote = owner.granted(region.grant());
            initiator.read(&remote).await.unwrap();
            let operation = initiator.reading(&remote);
            let halted = initiator.halted(&operation).await;
            let mut closing = Box::pin(region.close());
            assert!(futures::poll!(&mut closing).is_pending(), "a copy is in progress");
            if is_given_up {
                operation.cancel.cancel();
            }
            assert_eq!(halted.go_on().unwrap().is_err(), is_given_up);
            tokio::time::timeout(PATIENCE, closing).await.expect("the copy is done");
        }
    }
}

#[tokio::test]
async fn closing_under_the_last_stripe_of_a_copy_ends_though_the_peer_uses_another_region() {
    let owner = Owner::new(Secret::new().unwrap(), false).await;
    let [region, other] = both().map(|buffer| owner.register(buffer));
    let initiator = Initiator::new(&owner);
    let [remote, others] = [&region, &other].map(|region| owner.granted(region.grant()));
    // Neither has to be opened below.
    initiator.read(&others).await.unwrap();
    initiator.read(&remote).await.unwrap();
    let halted = initiator.halted(&initiator.reading(&remote)).await;
    let mut closing = Box::pin(region.close());
    assert!(futures::poll!(&mut closing).is_pending(), "a copy is in progress");
    assert!(halted.go_on().unwrap().is_ok());
    let using = async {
        loop {
            initiator.read(&others).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        closed = tokio::time::timeout(PATIENCE, closing) => drop(closed.expect("the copy is done")),
        () = using => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_however_it_meets_an_opening_or_the_copy_behind_it() {
    let owner = Owner::new(Secret::new().unwrap(), false).await;
    let initiator = Initiator::new(&owner);
    for round in 0..400 {
        let [plain, shared] = both();
        let region = owner.register(if round % 2 == 0 { plain } else { shared });
        let operation = initiator.reading(&owner.granted(region.grant()));
        let client = Arc::clone(&initiator.client);
        let copied = owner.tasks.spawn(async move { client.run(operation).await });
        for _ in 0..round {
            std::hint::spin_loop();
            tokio::task::yield_now().await;
        }
        let closed = tokio::time::timeout(PATIENCE, region.close()).await;
        closed.expect("nobody copies any more");
        if let Err(error) = copied.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::StaleRegion, "{error}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_in_a_copy_keeps_the_memory_as_long_as_its_connection() {
    let owner = Owner::new(Secret::new().unwrap(), false).await;
    let region = owner.register(sevens(HostBuffer::new(8)));
    let (link, slot, open) = owner.open(&owner.granted(region.grant())).await;
    stay_in(&link, slot);
    link.stream().try_write(&[0xff; 64]).unwrap();
    revoked(&open).await;
    let mut closing = Box::pin(region.close());
    an_hour_passes().await;
    assert!(futures::poll!(&mut closing).is_pending(), "it may still be copying");
    rustix::net::shutdown(link.stream(), Shutdown::Both).unwrap();
    let memory = tokio::time::timeout(PATIENCE, closing).await.expect("its sockets are closed");
    assert_eq!(memory[0][..], [7; 8]);
}

#[tokio::test]
async fn an_agent_that_shuts_down_waits_seconds_for_a_copy_and_never_frees_its_memory() {
    for breaks in [false, true] {
        let owner = Owner::new(Secret::new().unwrap(), false).await;
        let region = owner.register(HostBuffer::new(8));
        let (link, slot, open) = owner.open(&owner.granted(region.grant())).await;
        stay_in(&link, slot);
        if breaks {
            link.stream().try_write(&[0xff; 64]).unwrap();
            revoked(&open).await;
            an_hour_passes().await;
        }
        owner.shutdown.cancel();
        owner.tasks.close();
        revoked(&open).await;
        tokio::time::pause();
        tokio::time::timeout(PATIENCE, owner.tasks.wait())
            .await
            .expect("it does not wait for ever");
        tokio::time::resume();
        rustix::net::shutdown(link.stream(), Shutdown::Both).unwrap();
        let mut closing = Box::pin(region.close());
        assert!(futures::poll!(&mut closing).is_pending(), "nobody knows whether it is quiet");
    }
}

/// Lets time pass for whoever waits for a certain one.
async fn an_hour_passes() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::task::yield_now().await;
    tokio::time::resume();
}
