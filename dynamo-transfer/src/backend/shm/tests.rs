use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

mod closing;
mod raw;

use super::link::Link;
use super::message::Request;
use super::open::Open;
use super::opened::Opened;
use super::{Secret, ShmServer, socket_path};
use crate::backend::cuda::{DeviceConfig, DeviceCopier, SoftwareDevice};
use crate::backend::stage::Bounces;
use crate::backend::tcp::TcpServer;
use crate::inbound::Inbound;
use crate::memory::{Grant, Mapping, MemoryKind, RegionTable, Right, Rights};
use crate::peer::{PeerAddress, ShmAddress};
use crate::transfer::Notification;
use crate::wire::Hello;
use crate::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, RegisteredRegion, RemoteRegion, Result,
    TransferOptions, TransferReport,
};

/// An owner whose parts the test holds.
struct Owner {
    inbound: Arc<Inbound>,
    address: Arc<PeerAddress>,
    shm: ShmAddress,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _notifications: mpsc::Receiver<Notification>,
    _end: DropGuard,
}

impl Owner {
    async fn new(secret: Secret, tcp: bool) -> Self {
        let (notifications, queue) = mpsc::channel(4);
        let regions = Arc::new(RegionTable::new().unwrap());
        let tasks = TaskTracker::new();
        let (name, bounces) = ("owner".into(), Bounces::new(1 << 20, 1, &tasks));
        let inbound = Inbound { name, incarnation: 7, regions, bounces, notifications };
        let inbound = Arc::new(inbound);
        let shutdown = CancellationToken::new();
        let shm = ShmServer::start_with(secret, &inbound, &tasks, &shutdown).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let bound = TcpServer::start(listen, &inbound, &tasks, &shutdown).await.unwrap();
        let address = PeerAddress {
            name: "owner".into(),
            incarnation: 7,
            fabric: None,
            tcp: tcp.then_some(bound),
            shm: Some(shm),
            ucx: None,
        };
        let (address, end) = (Arc::new(address), shutdown.clone().drop_guard());
        Self { inbound, address, shm, tasks, shutdown, _notifications: queue, _end: end }
    }

    fn register(&self, buffer: HostBuffer) -> RegisteredRegion<HostBuffer> {
        let table = &self.inbound.regions;
        RegisteredRegion::writable(table, vec![buffer], Rights::PeersWrite).unwrap()
    }

    fn granted(&self, grant: Grant) -> RemoteRegion {
        let (token, len, kind) = self.inbound.regions.grant(grant).unwrap();
        RemoteRegion { peer: Arc::clone(&self.address), id: grant.id, token, len, kind }
    }

    /// Connects by hand, and opens a region for writing.
    async fn open(&self, region: &RemoteRegion) -> (Arc<Link>, u32, Open) {
        let (link, asked) =
            Link::connect(&self.inbound, &self.address, self.shm, true).await.unwrap();
        let link = Arc::new(link);
        let (driven, shutdown) = (Arc::clone(&link), self.shutdown.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = driven.drive(asked, || false, || ()) => {}
            }
        });
        let (region, token) = (region.id, region.token);
        let open = Request::Open { region, token, right: Right::Write, takes_addresses: true };
        let (content, files) = link.ask(open).await.unwrap();
        let opened = Opened::decode(&content).unwrap();
        let mapped = opened.files.iter().zip(files);
        let mapped = mapped.map(|(len, file)| {
            Arc::new(Mapping::of(file, usize::try_from(*len).unwrap(), true).unwrap())
        });
        let open = Open::new(&link, token, &opened, mapped.collect()).unwrap();
        (link, opened.slot, open)
    }
}

async fn initiator() -> Agent {
    Agent::start(AgentConfig::default().with_name("initiator")).await.unwrap()
}

async fn read(initiator: &Agent, region: &RemoteRegion) -> Result<TransferReport> {
    let target = initiator.register_mut(vec![HostBuffer::new(8)]).unwrap();
    let (local, remote) = (target.descriptor([(0, 8)]), region.descriptor([(0, 8)]));
    let report =
        initiator.read(local.unwrap(), remote.unwrap(), TransferOptions::default()).await?;
    assert_eq!(target.close().await[0][..], [7; 8]);
    Ok(report)
}

/// Waits until the owner has revoked what is open.
async fn revoked(open: &Open) {
    let revoked = async {
        while open.is_usable() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, revoked).await.expect("the owner revokes by itself");
}

fn sevens(mut buffer: HostBuffer) -> HostBuffer {
    buffer.fill(7);
    buffer
}

fn both() -> [HostBuffer; 2] {
    [sevens(HostBuffer::new(8)), sevens(HostBuffer::shared(8).unwrap())]
}

/// As where the process at the other end of the socket is not the one of that id here: another
/// namespace, or one that may not be looked into.
#[tokio::test]
async fn who_does_not_prove_to_be_the_peer_is_reached_through_what_is_mapped_or_over_tcp() {
    let lie = || Secret { value: 1, ..Secret::new().unwrap() };
    let (owner, initiator) = (Owner::new(lie(), true).await, initiator().await);
    let [plain, shared] = both().map(|buffer| owner.register(buffer));
    let used = |report: TransferReport| report.backend;
    let read_of = |region| read(&initiator, region);
    let (plain, shared) = (owner.granted(plain.grant()), owner.granted(shared.grant()));
    assert_eq!(read_of(&plain).await.map(used).unwrap(), BackendKind::Tcp);
    assert_eq!(read_of(&shared).await.map(used).unwrap(), BackendKind::Shm);
    assert_eq!(read_of(&plain).await.map(used).unwrap(), BackendKind::Tcp);

    let owner = Owner::new(lie(), false).await;
    let region = owner.register(HostBuffer::new(8));
    let error = read(&initiator, &owner.granted(region.grant())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
}

#[tokio::test]
async fn what_no_process_can_share_is_reached_over_tcp_whatever_the_peer_says_it_is() {
    let (owner, initiator) = (Owner::new(Secret::new().unwrap(), true).await, initiator().await);
    let device = SoftwareDevice::new(8 << 20).unwrap();
    let copier = DeviceCopier::software(&device, DeviceConfig::default()).unwrap();
    let buffer = copier.allocate(8).unwrap();
    buffer.copy_from(&copier, 0, &[7; 8]).await.unwrap();
    let table = &owner.inbound.regions;
    let region = RegisteredRegion::device(table, &copier, vec![buffer], Rights::PeersWrite);
    let region = region.unwrap();
    let (token, len, kind) = table.grant(region.grant()).unwrap();
    assert_eq!(kind, MemoryKind::Device(0));
    for kind in [kind, MemoryKind::File, MemoryKind::Host] {
        let (peer, id) = (Arc::clone(&owner.address), region.grant().id);
        let remote = RemoteRegion { peer, id, token, len, kind };
        assert_eq!(read(&initiator, &remote).await.unwrap().backend, BackendKind::Tcp);
    }
    drop(region);
    owner.inbound.bounces.close();
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn where_nobody_listens_the_peer_is_reached_over_tcp() {
    let (owner, initiator) = (Owner::new(Secret::new().unwrap(), true).await, initiator().await);
    let region = owner.register(sevens(HostBuffer::new(8)));
    let mut remote = owner.granted(region.grant());
    assert_eq!(read(&initiator, &remote).await.unwrap().backend, BackendKind::Shm);
    let shm = Some(ShmAddress { socket: owner.shm.socket ^ 1, ..owner.shm });
    remote.peer = Arc::new(PeerAddress { shm, ..(*owner.address).clone() });
    assert_eq!(read(&initiator, &remote).await.unwrap().backend, BackendKind::Tcp);
    remote.peer = Arc::new(PeerAddress { shm, tcp: None, ..(*owner.address).clone() });
    assert_eq!(read(&initiator, &remote).await.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn a_grant_that_expires_ends_what_is_open() {
    let (owner, initiator) = (Owner::new(Secret::new().unwrap(), true).await, initiator().await);
    let region = owner.register(sevens(HostBuffer::shared(8).unwrap()));
    let short = owner.granted(region.grant().with_ttl(Duration::from_millis(300)));
    let (_link, _, open) = owner.open(&short).await;
    assert_eq!(read(&initiator, &short).await.unwrap().backend, BackendKind::Shm);
    revoked(&open).await;
    let error = read(&initiator, &short).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(read(&initiator, &owner.granted(region.grant())).await.is_ok());
}

#[tokio::test]
async fn forged_messages_end_the_connection_and_the_owner_goes_on() {
    let (owner, initiator) = (Owner::new(Secret::new().unwrap(), false).await, initiator().await);
    let region = owner.register(sevens(HostBuffer::new(8)));
    let remote = owner.granted(region.grant());
    let hello = |opens| {
        let (target_name, name) = ("owner".into(), "forger".into());
        let hello = Hello { target_name, target_incarnation: 7, name, incarnation: 1 };
        Request::Hello { hello, opens }
    };
    let open = |proof| Request::Open {
        region: remote.id,
        token: crate::memory::Token { proof, ..remote.token },
        right: Right::Write,
        takes_addresses: true,
    };
    let close = |slot| Request::Close { slot };
    let said: [&[Request]; 7] = [
        &[open(remote.token.proof)],
        &[hello(true), hello(true)],
        &[hello(true), close(0)],
        &[hello(true), close(u32::MAX)],
        &[hello(true), open(remote.token.proof), close(0), close(0)],
        &[hello(true), Request::Notify(b"x"[..].into())],
        &[hello(false), open(remote.token.proof)],
    ];
    let mut forged: Vec<Vec<u8>> =
        said.iter().map(|said| said.iter().flat_map(Request::encode).collect()).collect();
    forged.extend([vec![0xff; 64], vec![0; 64], vec![1, 0, 0, 0, 99]]);
    for bytes in forged {
        let mut stream = UnixStream::connect(socket_path(owner.shm.socket)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answers = Vec::new();
        let ended = stream.read_to_end(&mut answers);
        // Broken off or closed, but over.
        let _ = tokio::time::timeout(PATIENCE, ended).await.expect("the owner hangs up");
    }
    let mut forged = remote.clone();
    forged.token.proof ^= 1;
    let error = read(&initiator, &forged).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(read(&initiator, &remote).await.unwrap().backend, BackendKind::Shm);
    let closed = tokio::time::timeout(PATIENCE, region.close()).await;
    assert_eq!(closed.expect("no lease is left")[0][..], [7; 8]);
}

#[tokio::test]
async fn regions_beyond_the_slots_take_the_place_of_those_used_longest_ago() {
    let (owner, initiator) = (Owner::new(Secret::new().unwrap(), false).await, initiator().await);
    let regions: Vec<_> = (0..700).map(|_| owner.register(sevens(HostBuffer::new(8)))).collect();
    for _ in 0..2 {
        for region in &regions {
            let report = read(&initiator, &owner.granted(region.grant())).await.unwrap();
            assert_eq!(report.backend, BackendKind::Shm);
        }
    }
    for region in regions {
        tokio::time::timeout(PATIENCE, region.close()).await.expect("nobody copies");
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
