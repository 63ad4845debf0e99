//! Each backend passes the conformance suite, and fails in the ways that are its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::time::Duration;

use dynamo_transfer::device::{DeviceConfig, DeviceCopier, SoftwareDevice};
use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, MemoryFabric, RemoteMemory, Rights,
    TransferOptions, conformance,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn agent(name: &str, fabric: Option<&MemoryFabric>, tcp: bool) -> Agent {
    let mut config = AgentConfig::default().with_name(name);
    if let Some(fabric) = fabric {
        config = config.with_fabric(fabric.clone());
    }
    if tcp {
        config = config.with_tcp_listen(loopback());
    }
    Agent::start(config).await.unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcpy_conforms() {
    let fabric = MemoryFabric::new();
    let owner = agent("owner", Some(&fabric), false).await;
    let initiator = agent("initiator", Some(&fabric), false).await;
    conformance::run(&owner, &initiator, BackendKind::Memcpy).await;
    owner.shutdown().await;
    initiator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_conforms() {
    let owner = agent("owner", None, true).await;
    let initiator = agent("initiator", None, false).await;
    conformance::run(&owner, &initiator, BackendKind::Tcp).await;
    owner.shutdown().await;
    initiator.shutdown().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shm_conforms() {
    let owner = AgentConfig::default().with_name("owner").with_shm(true);
    let owner = Agent::start(owner).await.unwrap();
    let initiator = agent("initiator", None, false).await;
    conformance::run(&owner, &initiator, BackendKind::Shm).await;
    owner.shutdown().await;
    initiator.shutdown().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shm_conforms_over_memory_that_is_mapped() {
    let owner = AgentConfig::default().with_name("owner").with_shm(true);
    let owner = Agent::start(owner).await.unwrap();
    let initiator = agent("initiator", None, false).await;
    let shared = |len| HostBuffer::shared(len).unwrap();
    conformance::run_over(&owner, &initiator, BackendKind::Shm, shared).await;
    owner.shutdown().await;
    initiator.shutdown().await;
}

#[tokio::test]
async fn agents_without_a_common_backend_are_told_so() {
    let owner = agent("owner", Some(&MemoryFabric::new()), false).await;
    let initiator = agent("initiator", Some(&MemoryFabric::new()), false).await;
    let peer = initiator.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    let error = initiator.notify(&peer, b"x"[..].into()).await.unwrap_err();
    assert_eq!((error.kind(), error.peer()), (ErrorKind::BackendUnavailable, Some("owner")));
}

#[tokio::test]
async fn what_is_of_another_agent_is_refused() {
    let (one, other) = (agent("one", None, false).await, agent("other", None, false).await);
    let register = |agent: &Agent| agent.register_peer_writable(vec![HostBuffer::new(8)]).unwrap();
    // Of one id, each in its own agent.
    let (ones, others) = (register(&one), register(&other));
    let error = other.metadata([others.grant(), ones.grant()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleRegion);
    let peer = one.load_metadata(&one.metadata([ones.grant()]).unwrap()).unwrap();
    let (local, remote) = (others.descriptor([(0, 8)]), peer.regions()[0].descriptor([(0, 8)]));
    let transfer = one.read(local.unwrap(), remote.unwrap(), TransferOptions::default());
    assert_eq!(transfer.await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    drop(ones);
    let again = register(&one);
    let granted = again.grant();
    drop(again);
    assert_eq!(one.metadata([granted]).unwrap_err().kind(), ErrorKind::StaleRegion);
}

#[tokio::test]
async fn an_estimate_names_who_would_move_the_bytes_and_comes_to_fit_what_they_take() {
    let fabric = MemoryFabric::new();
    let (owner, near) = (agent("owner", Some(&fabric), true), agent("near", Some(&fabric), false));
    let (owner, near, far) = (owner.await, near.await, agent("far", None, false).await);
    let source = owner.register(vec![HostBuffer::new(1 << 20)]).unwrap();
    let metadata = owner.metadata([source.grant()]).unwrap();
    for (reader, backend) in [(&near, BackendKind::Memcpy), (&far, BackendKind::Tcp)] {
        let peer = reader.load_metadata(&metadata).unwrap();
        let target = reader.register_mut(vec![HostBuffer::new(1 << 20)]).unwrap();
        let whole = [(0, 1 << 20)];
        let remote = peer.regions()[0].descriptor(whole).unwrap();
        let local = target.descriptor(whole).unwrap();
        let before = reader.estimate(&local, &remote).unwrap();
        let mut taken = Vec::new();
        for _ in 0..40 {
            let options = TransferOptions::default().with_deadline(Duration::MAX);
            let report = reader.read(local.clone(), remote.clone(), options).await.unwrap();
            assert_eq!(report.backend, before.backend);
            assert!(report.queued <= report.elapsed && report.moving() <= report.elapsed);
            taken.push(report.elapsed);
        }
        let after = reader.estimate(&local, &remote).unwrap();
        let (stats, index) = (reader.stats(), BackendKind::ALL.iter().position(|k| *k == backend));
        let index = index.unwrap();
        assert_eq!((stats.completed_by[index], stats.bytes_by(backend)), (40, 40 << 20));
        assert_eq!(stats.elapsed_total[index], taken.iter().sum());
        assert_eq!((before.backend, after.backend), (backend, backend));
        let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
        let fits = *least / 2..=*most * 2;
        assert!(fits.contains(&after.duration), "{before:?}, {after:?} of {fits:?}");
        drop(target);
        assert_eq!(reader.estimate(&local, &remote).unwrap_err().kind(), ErrorKind::StaleRegion);
    }
}

#[tokio::test]
async fn a_transfer_that_nobody_awaits_goes_on() {
    let alone = agent("alone", None, false).await;
    let source = alone.register(vec![HostBuffer::new(8)]).unwrap();
    let target = alone.register_mut(vec![HostBuffer::new(8)]).unwrap();
    let own = alone.load_metadata(&alone.metadata([source.grant()]).unwrap()).unwrap();
    let (local, remote) = (target.descriptor([(0, 8)]), own.regions()[0].descriptor([(0, 8)]));
    let transfer = alone.read(local.unwrap(), remote.unwrap(), TransferOptions::default());
    let moved = async {
        while transfer.progress().bytes_moved < 8 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap();
    assert_eq!(alone.stats().completed_total, 1);
}

#[tokio::test]
async fn a_write_from_a_device_that_is_refused_has_touched_nothing() {
    // More than a bounce buffer holds.
    const LEN: usize = 9 << 20;
    let owner = agent("owner", None, true).await;
    let initiator = agent("initiator", None, false).await;
    let region = owner.register_mut(vec![HostBuffer::new(LEN)]).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
    let device = SoftwareDevice::new(64 << 20).unwrap();
    let copier = DeviceCopier::software(&device, DeviceConfig::default()).unwrap();
    let buffers = vec![copier.allocate(LEN).unwrap()];
    let source = initiator.register_device(&copier, buffers, Rights::OwnerWrites).unwrap();
    let all = [(0, LEN as u64)];
    let (local, remote) = (source.descriptor(all), peer.regions()[0].descriptor(all));
    let write = initiator.write(local.unwrap(), remote.unwrap(), TransferOptions::default());
    let error = write.await.unwrap_err();
    let left = (error.kind(), error.remote_memory());
    assert_eq!(left, (ErrorKind::PermissionDenied, RemoteMemory::Untouched), "{error}");
}

#[tokio::test]
async fn garbage_on_a_connection_ends_it_and_the_owner_goes_on() {
    let owner = agent("owner", None, true).await;
    let region = owner.register(vec![HostBuffer::new(8)]).unwrap();
    let metadata = owner.metadata([region.grant()]).unwrap();
    let initiator = agent("initiator", None, false).await;
    let peer = initiator.load_metadata(&metadata).unwrap();
    let port = tcp_port(&metadata);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[255; 64], &[3, 0, 0, 0, 1, 2, 3]] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        // Either an error frame or a plain end, never a hang.
        let ended = stream.read_to_end(&mut answer).await;
        assert!(ended.is_err() || answer.is_empty() || answer[0] != 0, "{answer:?}");
    }
    let target = initiator.register_mut(vec![HostBuffer::new(8)]).unwrap();
    let read = initiator.read(
        target.descriptor([(0, 8)]).unwrap(),
        peer.regions()[0].descriptor([(0, 8)]).unwrap(),
        TransferOptions::default(),
    );
    assert_eq!(read.await.unwrap().bytes, 8);
}

fn tcp_port(metadata: &[u8]) -> u16 {
    let name_len = usize::from(u16::from_le_bytes([metadata[6], metadata[7]]));
    let port = 8 + name_len + 8 + 1 + 1 + 4;
    u16::from_le_bytes([metadata[port], metadata[port + 1]])
}

#[tokio::test]
async fn notifications_end_with_the_agent() {
    let fabric = MemoryFabric::new();
    let owner = agent("owner", Some(&fabric), false).await;
    let initiator = agent("initiator", Some(&fabric), false).await;
    let mut notifications = owner.notifications().unwrap();
    let peer = initiator.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    initiator.notify(&peer, b"last"[..].into()).await.unwrap();
    owner.shutdown().await;
    assert_eq!(notifications.recv().await.unwrap().payload, b"last"[..]);
    assert_eq!(notifications.recv().await, None);
    let error = initiator.notify(&peer, b"late"[..].into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StaleRegion);
}

#[tokio::test]
async fn a_wildcard_address_has_to_be_advertised_by_another() {
    let config = AgentConfig::default().with_tcp_listen("0.0.0.0:0".parse().unwrap());
    let error = Agent::start(config.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let owner = Agent::start(config.with_tcp_advertise(loopback())).await.unwrap();
    let mut notifications = owner.notifications().unwrap();
    let initiator = agent("initiator", None, false).await;
    let peer = initiator.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    initiator.notify(&peer, b"here"[..].into()).await.unwrap();
    assert_eq!(notifications.recv().await.unwrap().payload, b"here"[..]);
}

/// Transfers that cross between the same two writable regions: were the locks taken in the order
/// source, target, two threads would soon wait for each other.
#[test]
fn crossing_copies_do_not_block_each_other() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let crossing = async {
        let fabric = MemoryFabric::new();
        let owner = agent("owner", Some(&fabric), false).await;
        let initiator = agent("initiator", Some(&fabric), false).await;
        let theirs = owner.register_peer_writable(vec![HostBuffer::new(CROSSING)]).unwrap();
        let ours = initiator.register_mut(vec![HostBuffer::new(CROSSING)]).unwrap();
        let peer = initiator.load_metadata(&owner.metadata([theirs.grant()]).unwrap()).unwrap();
        let mut transfers = Vec::new();
        for round in 0..100 {
            let local = ours.descriptor([(0, CROSSING as u64)]).unwrap();
            let remote = peer.regions()[0].descriptor([(0, CROSSING as u64)]).unwrap();
            let options = TransferOptions::default();
            transfers.push(match round % 2 {
                0 => initiator.read(local, remote, options),
                _ => initiator.write(local, remote, options),
            });
        }
        futures::future::try_join_all(transfers).await.map(|reports| reports.len())
    };
    let outcome = runtime.block_on(crossing);
    // Threads that do block each other must not keep the test from failing.
    runtime.shutdown_background();
    assert_eq!(outcome.unwrap(), 100);
}

/// Several chunks.
const CROSSING: usize = 2 << 20;

#[tokio::test]
async fn an_agent_reaches_itself_without_a_fabric() {
    let alone = agent("alone", None, false).await;
    let (mut source, target) = (HostBuffer::new(8), HostBuffer::new(8));
    source.fill(7);
    let source = alone.register(vec![source]).unwrap();
    let target = alone.register_mut(vec![target]).unwrap();
    let own = alone.load_metadata(&alone.metadata([source.grant()]).unwrap()).unwrap();
    let (local, remote) = (target.descriptor([(0, 8)]), own.regions()[0].descriptor([(0, 8)]));
    let options = TransferOptions::default().with_notification(&b"moved"[..]);
    let mut notifications = alone.notifications().unwrap();
    let report = alone.read(local.unwrap(), remote.unwrap(), options).await.unwrap();
    assert_eq!((report.bytes, report.backend), (8, BackendKind::Memcpy));
    assert_eq!(notifications.recv().await.unwrap().from, "alone");
    assert_eq!(target.close().await[0][..], [7; 8]);
}
