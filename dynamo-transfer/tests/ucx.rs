//! UCX between agents of one process and of two; skipped, and that is said, without libucp.
//!
//! The loader finds another libucp than the system's where `LD_LIBRARY_PATH` says: for the one in the
//! PyPI wheel `libucx-cu12`, set that to its `lib`, and `UCX_MODULE_DIR` to its `lib/ucx`.
#![cfg(feature = "ucx")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::disallowed_methods, reason = "a process that ends is waited for in real time")]

mod child;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent,
    TransferOptions, UcxConfig, conformance,
};

use child::{Asked, from_hex, to_hex};

const MIB: usize = 1 << 20;

/// Starts an agent, or says why not.
async fn agent(name: &str) -> Option<Agent> {
    let config = AgentConfig::default().with_name(name).with_ucx(UcxConfig::default());
    conformance::unless_ucx_is_missing("a test of UCX", Agent::start(config).await)
}

/// Runs a test, one after the other: some count what the process has open.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_library_that_is_missing_is_named() {
    let config = UcxConfig::default().with_library("/nowhere/libucp.so.0");
    let error = block_on(Agent::start(AgentConfig::default().with_ucx(config))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
    assert!(error.message().contains("/nowhere/libucp.so.0"), "{error}");
    assert!(error.message().contains("No such file"), "{error}");
    assert!(conformance::unless_ucx_is_missing::<()>("this", Err(error)).is_none());
}

#[test]
#[should_panic(expected = "cannot load libm.so.6")]
fn a_library_that_is_there_and_no_ucx_skips_no_test() {
    let config = UcxConfig::default().with_library("libm.so.6");
    conformance::unless_ucx_is_missing("this", config.library_version());
}

#[test]
fn only_the_transports_and_devices_that_are_named_are_used() {
    let config = |transports: &str, devices: &str| {
        let ucx = UcxConfig::default().with_transports(transports).with_devices(devices);
        AgentConfig::default().with_ucx(ucx)
    };
    block_on(async {
        let Some(probe) = agent("probe").await else { return };
        probe.shutdown().await;
        for (transports, devices) in [("tcp", "nowhere0"), ("of_no_kind", "lo")] {
            let error = Agent::start(config(transports, devices)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BackendUnavailable, "{transports} {devices}");
        }
        let start = async |name| Agent::start(config("tcp", "lo").with_name(name)).await.unwrap();
        let (owner, initiator) = (start("owner").await, start("initiator").await);
        conformance::run(&owner, &initiator, BackendKind::Ucx).await;
        owner.shutdown().await;
        initiator.shutdown().await;
    });
}

#[test]
fn ucx_conforms() {
    block_on(async {
        let Some(owner) = agent("owner").await else { return };
        let initiator = agent("initiator").await.unwrap();
        conformance::run(&owner, &initiator, BackendKind::Ucx).await;
        owner.shutdown().await;
        initiator.shutdown().await;
    });
}

#[test]
fn a_peer_that_tcp_leads_to_best_and_does_not_reach_is_reached_over_ucx() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        // Nobody listens there any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let owner = AgentConfig::default().with_tcp_listen(listen).with_tcp_advertise(gone);
        let owner = Agent::start(owner.with_ucx(UcxConfig::default())).await.unwrap();
        let source = owner.register(vec![vec![7; 64 << 10]]).unwrap();
        let peer = initiator.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
        let target = initiator.register_mut(vec![vec![0; 64 << 10]]).unwrap();
        // Many small ranges.
        let ranges = || (0..512).map(|index| (index * 128, 64));
        let local = target.descriptor(ranges()).unwrap();
        let remote = peer.regions()[0].descriptor(ranges()).unwrap();
        assert_eq!(initiator.estimate(&local, &remote).unwrap().backend, BackendKind::Tcp);
        let report = initiator.read(local, remote, TransferOptions::default()).await.unwrap();
        assert_eq!((report.bytes, report.backend), (512 * 64, BackendKind::Ucx));
        let got = target.close().await;
        assert!(got[0].chunks(128).all(|row| row[..64] == [7; 64] && row[64..] == [0; 64]));
        initiator.shutdown().await;
        owner.shutdown().await;
    });
}

#[test]
fn two_processes_read_write_and_notify() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let mut owner = Owner::start();
        let peer = initiator.load_metadata(&owner.metadata()).unwrap();

        let target = initiator.register_mut(vec![HostBuffer::new(SOURCE_BYTES)]).unwrap();
        // Backwards, in blocks that fit into no fragment evenly.
        let blocks = || (0..SOURCE_BYTES as u64 / BLOCK).rev().map(|i| (i * BLOCK, BLOCK));
        let local = target.descriptor(blocks()).unwrap();
        let remote = peer.regions()[0].descriptor(blocks()).unwrap();
        let report = initiator.read(local, remote, TransferOptions::default()).await.unwrap();
        assert_eq!(report.backend, BackendKind::Ucx);
        let got = target.close().await;
        let whole = usize::try_from(SOURCE_BYTES as u64 / BLOCK * BLOCK).unwrap();
        assert!(got[0][..whole] == pattern(SOURCE_BYTES)[..whole]);

        // As many pieces as one request takes, and more.
        let target = initiator.register_mut(vec![HostBuffer::new(SOURCE_BYTES)]).unwrap();
        let pieces = || (0..20_000u64).map(|i| (i * 1600, 800u64));
        let local = target.descriptor(pieces()).unwrap();
        let remote = peer.regions()[0].descriptor(pieces()).unwrap();
        initiator.read(local, remote, TransferOptions::default()).await.unwrap();
        let (got, expected) = (target.close().await, pattern(SOURCE_BYTES));
        for (offset, len) in pieces() {
            let at = usize::try_from(offset).unwrap();
            let end = at + usize::try_from(len).unwrap();
            assert!(got[0][at..end] == expected[at..end], "piece at {at}");
            assert!(got[0][end..end + 800].iter().all(|byte| *byte == 0));
        }

        let source = initiator.register(vec![pattern(TARGET_BYTES)]).unwrap();
        let all = [(0, TARGET_BYTES as u64)];
        let options = TransferOptions::default().with_notification(&b"written"[..]);
        let written = initiator.write(
            source.descriptor(all).unwrap(),
            peer.regions()[1].descriptor(all).unwrap(),
            options,
        );
        written.await.unwrap();
        assert_eq!(owner.0.ask("notified"), "written from initiator, bytes are right");

        let refused = initiator.write(
            source.descriptor([(0, 8)]).unwrap(),
            peer.regions()[0].descriptor([(0, 8)]).unwrap(),
            TransferOptions::default(),
        );
        assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::PermissionDenied);
        initiator.shutdown().await;
        owner.end();
    });
}

#[test]
fn a_thousand_transfers_leave_nothing_behind() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let mut owner = Owner::start();
        let peer = initiator.load_metadata(&owner.metadata()).unwrap();
        let mut after_warming_up = None;
        for round in 0..1100 {
            let target = initiator.register_mut(vec![HostBuffer::new(MIB)]).unwrap();
            let all = [(0, MIB as u64)];
            let (local, remote) =
                (target.descriptor(all).unwrap(), peer.regions()[0].descriptor(all).unwrap());
            initiator.read(local, remote, TransferOptions::default()).await.unwrap();
            assert_eq!(target.close().await.len(), 1);
            if round == 100 {
                after_warming_up = Some((descriptors(), resident_bytes()));
            }
        }
        let (open, resident) = after_warming_up.unwrap();
        assert!(descriptors() <= open, "{} descriptors, {open} before", descriptors());
        let grown = resident_bytes().saturating_sub(resident);
        assert!(grown < 16 << 20, "{grown} bytes more are resident");
        initiator.shutdown().await;
        owner.end();
    });
}

#[test]
fn looking_for_owners_that_are_gone_leaves_nothing_behind() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let target = initiator.register_mut(vec![vec![0; 4096]]).unwrap();
        let mut after_warming_up = None;
        for round in 0..30 {
            let owner = agent("owner").await.unwrap();
            let source = owner.register(vec![vec![7; 4096]]).unwrap();
            let peer = initiator.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
            owner.shutdown().await;
            let all = [(0, 4096)];
            let (local, remote) = (target.descriptor(all), peer.regions()[0].descriptor(all));
            let options = TransferOptions::default();
            let error = initiator.read(local.unwrap(), remote.unwrap(), options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            if round == 9 {
                after_warming_up = Some(descriptors());
            }
        }
        // One more for each of twenty that were looked for, or what is closed a little later.
        let open = after_warming_up.unwrap();
        assert!(descriptors() < open + 10, "{} descriptors, {open} before", descriptors());
        initiator.shutdown().await;
    });
}

#[test]
fn an_idle_agent_does_not_spin() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let mut owner = Owner::start();
        let peer = initiator.load_metadata(&owner.metadata()).unwrap();
        let target = initiator.register_mut(vec![HostBuffer::new(SOURCE_BYTES)]).unwrap();
        read_all(&initiator, &target, &peer).await.unwrap();
        let before = owner.cpu_ticks();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = owner.cpu_ticks() - before;
        assert!(used <= 2, "{used} ticks of 200 while nothing was to be done");
        initiator.shutdown().await;
        owner.end();
    });
}

async fn read_all(
    initiator: &Agent,
    target: &RegisteredRegion<HostBuffer>,
    peer: &RemoteAgent,
) -> dynamo_transfer::Result<dynamo_transfer::TransferReport> {
    let all = [(0, SOURCE_BYTES as u64)];
    let remote = peer.regions()[0].descriptor(all)?;
    initiator.read(target.descriptor(all)?, remote, TransferOptions::default()).await
}

/// Not a test: the other process. It does what each line of its standard input says, and ends with it.
#[test]
#[ignore = "run by the tests, as the owner"]
fn owner() {
    block_on(async {
        let agent = agent("owner").await.unwrap();
        let mut notifications = agent.notifications().unwrap();
        let source = agent.register(vec![pattern(SOURCE_BYTES)]).unwrap();
        let mut target = Some(agent.register_peer_writable(vec![HostBuffer::new(TARGET_BYTES)]));
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let answer = match line.as_str() {
                "metadata" => {
                    let target = target.as_ref().unwrap().as_ref().unwrap();
                    to_hex(&agent.metadata([source.grant(), target.grant()]).unwrap())
                }
                "notified" => {
                    let note = notifications.recv().await.unwrap();
                    let payload = String::from_utf8(note.payload.to_vec()).unwrap();
                    let written = target.take().unwrap().unwrap().close().await;
                    let is_right = written[0][..] == pattern(TARGET_BYTES)[..];
                    let verdict = if is_right { "right" } else { "wrong" };
                    format!("{payload} from {}, bytes are {verdict}", note.from)
                }
                _ => break,
            };
            child::answer(&answer);
        }
        agent.shutdown().await;
        child::answer("gone");
    });
}

/// The owner in its process.
struct Owner(Asked);

impl Owner {
    fn start() -> Self {
        Self(Asked::start(&[], &["owner", "--exact", "--ignored", "--nocapture"]))
    }

    fn metadata(&mut self) -> Vec<u8> {
        from_hex(&self.0.ask("metadata"))
    }

    /// Has the process end in order, and sees that it does.
    fn end(mut self) {
        assert_eq!(self.0.ask("end"), "gone");
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(status) = self.0.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        unreachable!("the process does not end");
    }

    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.process.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn pattern(len: usize) -> HostBuffer {
    let mut buffer = HostBuffer::new(len);
    // A period that divides no block.
    buffer.iter_mut().zip((1u8..=251).cycle()).for_each(|(byte, value)| *byte = value);
    buffer
}

const SOURCE_BYTES: usize = 32 * MIB;
const TARGET_BYTES: usize = 3 * MIB + 17;
const BLOCK: u64 = 49_999;
