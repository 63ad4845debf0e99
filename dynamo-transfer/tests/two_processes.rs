//! Peers in processes of their own, which are killed, frozen and started anew.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent,
    Transfer, TransferOptions,
};

#[cfg(target_os = "linux")]
const BACKENDS: &[BackendKind] = &[BackendKind::Tcp, BackendKind::Shm];
#[cfg(not(target_os = "linux"))]
const BACKENDS: &[BackendKind] = &[BackendKind::Tcp];

/// What only the tests' own processes are told, as the name of a test to skip.
const AS_PEER: &str = "as_peer_of_a_test";

const REGION_BYTES: usize = 64 << 20;

fn config(name: &str, backend: BackendKind, is_owner: bool) -> AgentConfig {
    let config = AgentConfig::default().with_name(name);
    match backend {
        BackendKind::Tcp if is_owner => config.with_tcp_listen("127.0.0.1:0".parse().unwrap()),
        BackendKind::Shm => config.with_shm(true),
        _ => config,
    }
}

#[test]
#[ignore = "run by the tests, as the peer"]
fn owner_over_tcp() {
    own(BackendKind::Tcp);
}

#[test]
#[ignore = "run by the tests, as the peer"]
fn owner_over_shm() {
    own(BackendKind::Shm);
}

/// The other process: lives until its standard input ends.
fn own(backend: BackendKind) {
    if !std::env::args().any(|arg| arg == AS_PEER) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let agent = Agent::start(config("owner", backend, true)).await.unwrap();
        let mut memory = HostBuffer::new(REGION_BYTES);
        memory.fill(7);
        let region = agent.register_peer_writable(vec![memory]).unwrap();
        let metadata = agent.metadata([region.handle()]);
        let hex: String = metadata.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut said = std::io::stdout();
        writeln!(said, "\nMETADATA {hex}").unwrap();
        let end = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
        end.await.unwrap();
        agent.shutdown().await;
    });
}

struct Owner {
    process: Child,
    _alive: ChildStdin,
    metadata: Vec<u8>,
}

impl Owner {
    fn start(backend: BackendKind) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(format!("owner_over_{backend}"))
            .args(["--exact", "--ignored", "--nocapture", "--skip", AS_PEER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("METADATA ").map(str::to_owned));
        let hex = said.unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        let metadata = (0..hex.len() / 2).map(byte).collect();
        let alive = process.stdin.take().unwrap();
        Self { process, _alive: alive, metadata }
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(
    agent: &Agent,
    peer: &RemoteAgent,
    target: &RegisteredRegion<HostBuffer>,
    deadline: Duration,
) -> Transfer {
    let whole = [(0, REGION_BYTES as u64)];
    let options = TransferOptions::default().with_deadline(deadline);
    let (local, remote) = (target.descriptor(whole), peer.regions()[0].descriptor(whole));
    agent.read(local.unwrap(), remote.unwrap(), options)
}

/// Kills owners in the middle of transfers; each time the transfer ends in time, the memory comes
/// back, and the next owner is reached.
async fn kill(backend: BackendKind, times: usize) {
    let agent = Agent::start(config("reader", backend, false)).await.unwrap();
    let mut failed = 0;
    for round in 0..times {
        let mut owner = Owner::start(backend);
        let peer = agent.load_metadata(&owner.metadata).unwrap();
        let target = agent.register_mut(vec![HostBuffer::new(REGION_BYTES)]).unwrap();
        read(&agent, &peer, &target, Duration::from_secs(20)).await.unwrap();
        let transfers: Vec<_> =
            (0..4).map(|_| read(&agent, &peer, &target, Duration::from_secs(20))).collect();
        // Somewhere in the middle, another place each time.
        let half = (REGION_BYTES * (round % 16) / 16) as u64;
        while transfers[0].progress().bytes_moved < half {
            tokio::task::yield_now().await;
        }
        owner.kill();
        for transfer in transfers {
            let settled = tokio::time::timeout(Duration::from_secs(10), transfer);
            if let Err(error) = settled.await.expect("settles long before its deadline") {
                assert!(error.is_retryable(), "{error}: {:?}", error.kind());
                failed += 1;
            }
        }
        let closed = tokio::time::timeout(Duration::from_secs(10), target.close());
        assert!(closed.await.expect("nothing holds the memory")[0].len() == REGION_BYTES);
    }
    assert!(failed > times, "{failed} of {} transfers were cut off", 4 * times);
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_killed_in_the_middle_is_an_error_at_once_and_holds_no_memory() {
    for &backend in BACKENDS {
        kill(backend, 8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; `cargo test -p dynamo-transfer --test two_processes -- --ignored killed_200`"]
async fn owners_killed_200_times_leave_nothing_behind() {
    for &backend in BACKENDS {
        kill(backend, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_costs_no_more_than_the_deadline_and_serves_when_it_thaws() {
    for &backend in BACKENDS {
        let owner = Owner::start(backend);
        let agent = Agent::start(config("reader", backend, false)).await.unwrap();
        let peer = agent.load_metadata(&owner.metadata).unwrap();
        let target = agent.register_mut(vec![HostBuffer::new(REGION_BYTES)]).unwrap();
        read(&agent, &peer, &target, Duration::from_secs(20)).await.unwrap();
        owner.signal("-STOP");
        let frozen = read(&agent, &peer, &target, Duration::from_millis(500)).await;
        // Over shared memory the owner takes no part.
        let expected = (backend != BackendKind::Shm).then_some(ErrorKind::DeadlineExceeded);
        assert_eq!(frozen.err().map(|error| error.kind()), expected);
        owner.signal("-CONT");
        let report = read(&agent, &peer, &target, Duration::from_secs(20)).await.unwrap();
        assert_eq!((report.bytes, report.backend), (REGION_BYTES as u64, backend));
        let closed = tokio::time::timeout(Duration::from_secs(20), target.close()).await;
        assert!(closed.expect("quiet again")[0].iter().all(|byte| *byte == 7));
    }
}
