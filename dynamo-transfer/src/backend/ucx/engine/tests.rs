use std::cell::Cell;
use std::sync::mpsc as std_mpsc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::Rights;
use crate::backend::connection::IDLE_MAX;
use crate::backend::stage::Bounces;
use crate::backend::ucx::links;
use crate::backend::ucx::tests::raw::RawUcx;
use crate::backend::ucx::tests::{agent, request, runtime};
use crate::backend::{Operation, Terms};
use crate::conformance::unless_ucx_is_missing;
use crate::descriptor::Ranges;
use crate::memory::{HostBuffer, Leased, MemoryKind, RegionTable, RegisteredRegion, Right};
use crate::peer::{PeerAddress, RemoteRegion};
use crate::transfer::Priority;

/// An engine that is worked by hand, at times that the test says.
pub(in crate::backend::ucx) struct Bench {
    engine: Engine,
    inbound: Arc<Inbound>,
    address: Bytes,
    later: Cell<Duration>,
    _deliveries: mpsc::Receiver<Delivery>,
}

impl Bench {
    pub(in crate::backend::ucx) fn new() -> Option<Self> {
        let (notifications, _) = mpsc::channel(1);
        let inbound = Arc::new(Inbound {
            name: "bench".to_owned(),
            incarnation: 7,
            regions: Arc::new(RegionTable::new().unwrap()),
            bounces: Bounces::new(4096, 1, &TaskTracker::new()),
            notifications,
        });
        let (mailbox, letters) = Mailbox::new().unwrap();
        let (sender, deliveries) = mpsc::channel(1);
        let started =
            Engine::new(&UcxConfig::default(), &inbound, sender, (Arc::new(mailbox), letters));
        let (engine, address) = unless_ucx_is_missing("a test of UCX's thread", started)?;
        let (address, later) = (address.into(), Cell::default());
        Some(Self { engine, inbound, address, later, _deliveries: deliveries })
    }

    pub(in crate::backend::ucx) fn peer(&self) -> PeerAddress {
        let (name, ucx) = ("bench".to_owned(), Some(self.address.clone()));
        PeerAddress { name, incarnation: 7, fabric: None, tcp: None, shm: None, ucx }
    }

    /// Registers memory that peers may write; returns where they find it, too.
    pub(in crate::backend::ucx) fn writable(
        &self,
        memory: HostBuffer,
    ) -> (RegisteredRegion<HostBuffer>, RemoteRegion) {
        let (len, regions) = (memory.len() as u64, &self.inbound.regions);
        let region = RegisteredRegion::writable(regions, vec![memory], Rights::PeersWrite);
        let region = region.unwrap();
        let (id, (token, ..)) = (region.grant().id, regions.grant(region.grant()).unwrap());
        let (peer, kind) = (Arc::new(self.peer()), MemoryKind::Host);
        (region, RemoteRegion { peer, id, token, len, kind })
    }

    /// Starts to write all of a region of this side; returns how that ends.
    pub(in crate::backend::ucx) fn write(
        &mut self,
        op: u64,
        local: u64,
        remote: &RemoteRegion,
    ) -> oneshot::Receiver<Result<()>> {
        let right = Right::Write;
        let Ok(Leased::Host(lease)) =
            self.inbound.regions.lease_local(local, right, &Arc::default())
        else {
            unreachable!("it is memory of the host")
        };
        let terms = Terms {
            priority: Priority::Normal,
            is_checked: false,
            cancel: CancellationToken::new(),
            progress: Arc::default(),
        };
        let all = Ranges::unchecked([(0, remote.len)]);
        let remote = remote.descriptor([(0, remote.len)]).unwrap();
        let operation = Operation::new(right, (lease, all), remote, terms).unwrap();
        let (done, outcome) = oneshot::channel();
        let Engine { initiator, net, .. } = &mut self.engine;
        initiator.run(net, op, Arc::new(operation), done);
        outcome
    }

    /// Works while a peer does what it does, on a thread of its own; what it asks for is done
    /// between two turns, while it waits.
    pub(in crate::backend::ucx) fn beside<T: Send>(
        &mut self,
        peer: impl FnOnce(&Asks) -> T + Send,
    ) -> T {
        let (asks, asked) = std_mpsc::channel::<Wish>();
        std::thread::scope(|scope| {
            let peer = scope.spawn(move || peer(&Asks(asks)));
            self.until(|bench| {
                asked.try_iter().for_each(|wish| wish(bench));
                peer.is_finished()
            });
            peer.join().unwrap()
        })
    }

    /// One turn; a thread that is at rest has seen all that UCX has called back.
    fn turn(&mut self) -> bool {
        let later = self.later.get();
        let turn = self.engine.turn(|| Instant::now() + later);
        let is_resting = matches!(turn, Turn::Rest(_));
        assert!(!is_resting || !self.engine.net.has_events(), "it sleeps on what has happened");
        is_resting && self.engine.arm().unwrap()
    }

    /// Works until that is so.
    pub(in crate::backend::ucx) fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !is_so(self) {
            self.turn();
            assert!(Instant::now() < until, "it does not come about");
        }
    }

    /// Works until there is nothing to do.
    pub(in crate::backend::ucx) fn rest(&mut self) {
        self.rest_at(Duration::ZERO);
    }

    /// Works at a later time until there is nothing to do.
    fn rest_at(&mut self, later: Duration) {
        self.later.set(later);
        self.until(Self::turn);
    }
}

type Wish = Box<dyn FnOnce(&mut Bench) + Send>;

/// What a peer on another thread may ask of the one that works the engine.
pub(in crate::backend::ucx) struct Asks(std_mpsc::Sender<Wish>);

impl Asks {
    /// Has that thread do this, and waits for it.
    pub(in crate::backend::ucx) fn have<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Bench) -> T + Send + 'static,
    ) -> T {
        let (says, said) = std_mpsc::channel();
        self.0.send(Box::new(move |bench| says.send(what(bench)).unwrap())).unwrap();
        said.recv().unwrap()
    }
}

#[test]
fn the_thread_does_not_sleep_on_what_giving_up_has_made() {
    let Some(mut bench) = Bench::new() else { return };
    let (region, remote) = bench.writable(HostBuffer::new(64));
    let wish = request(&remote, &[(0, 64)]).encode();
    let (peer, (says, said)) = (bench.peer(), std_mpsc::channel());
    let (leaves, left) = std_mpsc::channel::<()>();
    let hostile = std::thread::spawn(move || {
        let mut raw = RawUcx::start(&peer).unwrap();
        raw.say(Kind::Request, 1, wish);
        raw.hear(&[Kind::Accept]);
        says.send(()).unwrap();
        // It sends no data, and stays.
        let _ = left.recv();
    });
    bench.until(|_| said.try_recv().is_ok());
    bench.rest_at(Duration::ZERO);
    // The owner gives up, and says so: that it has is seen before it sleeps.
    bench.rest_at(Duration::from_secs(12));
    drop(leaves);
    hostile.join().unwrap();
    assert!(futures::FutureExt::now_or_never(region.close()).is_some(), "the lease has ended");
}

#[test]
fn an_owner_lets_links_go_that_are_idle() {
    let Some(mut bench) = Bench::new() else { return };
    let (peer, (says, said)) = (bench.peer(), std_mpsc::channel());
    let (leaves, left) = std_mpsc::channel::<()>();
    let hostile = std::thread::spawn(move || {
        let raw = RawUcx::start(&peer).unwrap();
        says.send(()).unwrap();
        let _ = left.recv();
        drop(raw);
    });
    bench.until(|_| said.try_recv().is_ok());
    bench.rest_at(IDLE_MAX - Duration::from_secs(5));
    assert_eq!(bench.engine.owner.links(), 1);
    bench.rest_at(IDLE_MAX + Duration::from_secs(1));
    assert_eq!(bench.engine.owner.links(), 0);
    drop(leaves);
    hostile.join().unwrap();
}

#[test]
fn an_initiator_closes_links_that_are_idle_and_makes_them_again() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let mut notifications = owner.notifications().unwrap();
    let peer = owner.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    let mut bench = Bench::new().unwrap();
    for op in 0..3 {
        bench.later.set(Duration::ZERO);
        let (done, mut outcome) = oneshot::channel();
        let Engine { initiator, net, .. } = &mut bench.engine;
        initiator.notify(net, op, &peer.address, (Bytes::from_static(b"here"), done));
        let mut settled = None;
        bench.until(|_| {
            settled = outcome.try_recv().ok();
            settled.is_some()
        });
        settled.unwrap().unwrap();
        assert_eq!(runtime.block_on(notifications.recv()).unwrap().payload, b"here"[..]);
        bench.rest_at(links::IDLE_MAX - Duration::from_secs(5));
        assert_eq!(bench.engine.initiator.links(), 1);
        bench.rest_at(links::IDLE_MAX + Duration::from_secs(1));
        assert_eq!(bench.engine.initiator.links(), 0);
    }
    bench.engine.close();
    runtime.block_on(owner.shutdown());
}
