//! UCX between agents of one process and of two; skipped, and that is said, without libucp.
//!
//! The loader finds another libucp than the system's where `LD_LIBRARY_PATH` says: for the one in the
//! PyPI wheel `libucx-cu12`, set that to its `lib`, and `UCX_MODULE_DIR` to its `lib/ucx`.
#![cfg(feature = "ucx")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::print_stdout, reason = "a child process speaks to its parent")]
#![expect(clippy::disallowed_methods, reason = "time, and a child's role, are of the process")]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent,
    TransferOptions, UcxConfig, conformance,
};

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
fn two_processes_read_write_and_notify() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let mut owner = Process::start("owner");
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
        assert_eq!(owner.line("NOTIFIED "), "written from initiator, bytes are right");

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
        let mut owner = Process::start("owner");
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
fn an_idle_agent_does_not_spin() {
    block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let mut owner = Process::start("owner");
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

/// What the parent has started this process for; a test only in name.
#[test]
#[ignore = "is the other process of the others"]
fn child() {
    let Ok(role) = std::env::var("DYNAMO_TEST_ROLE") else { return };
    block_on(async {
        let agent = agent(&role).await.unwrap();
        own(&agent, if role == "large" { LARGE_BYTES } else { TARGET_BYTES }).await;
        agent.shutdown().await;
    });
}

async fn own(agent: &Agent, target_bytes: usize) {
    let mut notifications = agent.notifications().unwrap();
    let source = agent.register(vec![pattern(SOURCE_BYTES)]).unwrap();
    let target = agent.register_peer_writable(vec![HostBuffer::new(target_bytes)]).unwrap();
    let handles = [source.grant(), target.grant()];
    // The large one is read and written alike.
    let handles = if target_bytes == LARGE_BYTES { &handles[1..] } else { &handles[..] };
    println!("METADATA {}", hex(&agent.metadata(handles.iter().copied()).unwrap()));
    let end = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    let notified = async {
        let note = notifications.recv().await.unwrap();
        let (from, payload) = (note.from, String::from_utf8(note.payload.to_vec()).unwrap());
        let is_right = target.close().await[0][..] == pattern(target_bytes)[..];
        let verdict = if is_right { "right" } else { "wrong" };
        println!("NOTIFIED {payload} from {from}, bytes are {verdict}");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = end => {}
        () = notified => {}
    }
}

/// This very program in another process.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("DYNAMO_TEST_ROLE", role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    /// Returns what follows `word` on the next line that has it.
    fn line(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        unreachable!("the process ended without saying {word}");
    }

    fn metadata(&mut self) -> Vec<u8> {
        unhex(&self.line("METADATA "))
    }

    /// Has the process end in order, and sees that it does.
    fn end(mut self) {
        drop(self.stdin.take());
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        unreachable!("the process does not end");
    }

    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

const SOURCE_BYTES: usize = 32 * MIB;
const TARGET_BYTES: usize = 3 * MIB + 17;
const LARGE_BYTES: usize = 513 * MIB;
const BLOCK: u64 = 49_999;
