//! Shared memory between processes: of their own, and for long.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::print_stdout, reason = "processes of the test talk so")]

mod child;

use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent,
    RemoteRegion, Transfer, TransferOptions,
};

use child::{Asked, from_hex, to_hex};

const REGION_BYTES: usize = 32 << 20;
const PAGE: usize = 4096;

fn region(agent: &Agent, mut memory: HostBuffer, byte: u8) -> RegisteredRegion<HostBuffer> {
    memory.fill(byte);
    agent.register_peer_writable(vec![memory]).unwrap()
}

/// Not a test: the other process. It does what each line of its standard input says, and ends with it.
#[test]
#[ignore = "run by the tests, as the peer"]
fn peer() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let agent = Agent::start(AgentConfig::default().with_name("peer").with_shm(true));
        let agent = agent.await.unwrap();
        let mut notifications = agent.notifications().unwrap();
        let mut regions = vec![
            region(&agent, HostBuffer::new(REGION_BYTES), 7),
            region(&agent, HostBuffer::shared(REGION_BYTES).unwrap(), 8),
        ];
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let answer = match line.split_once(' ').unwrap_or((&line, "")) {
                ("metadata", _) => {
                    to_hex(&agent.metadata(regions.iter().map(|r| r.grant())).unwrap())
                }
                ("close", _) => {
                    let memory = regions.remove(0).close().await;
                    format!("{} {}", memory[0][0], memory[0][REGION_BYTES - 1])
                }
                ("register", kind) => {
                    let memory = match kind {
                        "shared" => HostBuffer::shared(PAGE).unwrap(),
                        _ => HostBuffer::new(PAGE),
                    };
                    let new = region(&agent, memory, 1);
                    let metadata = agent.metadata([new.grant()]).unwrap();
                    regions.push(new);
                    to_hex(&metadata)
                }
                ("release", _) => regions.pop().unwrap().close().await[0][0].to_string(),
                ("held", _) => held().map(|count| count.to_string()).join(" "),
                ("notification", _) => {
                    String::from_utf8(notifications.recv().await.unwrap().payload.to_vec()).unwrap()
                }
                _ => break,
            };
            child::answer(&answer);
        }
        agent.shutdown().await;
    });
}

struct Peer(Asked);

impl Peer {
    fn start() -> Self {
        Self(Asked::start(&[], &["peer", "--exact", "--ignored", "--nocapture"]))
    }

    fn ask(&mut self, line: &str) -> String {
        self.0.ask(line)
    }

    fn load(&mut self, agent: &Agent) -> RemoteAgent {
        agent.load_metadata(&from_hex(&self.ask("metadata"))).unwrap()
    }
}

async fn agent() -> Agent {
    Agent::start(AgentConfig::default().with_name("own").with_shm(true)).await.unwrap()
}

fn read(agent: &Agent, from: &RemoteRegion, to: &RegisteredRegion<HostBuffer>) -> Transfer {
    let whole = [(0, to.len())];
    let (local, remote) = (to.descriptor(whole).unwrap(), from.descriptor(whole).unwrap());
    agent.read(local, remote, TransferOptions::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_is_read_and_written_and_notified_and_closes_its_memory() {
    let (mut process, agent) = (Peer::start(), agent().await);
    let peer = process.load(&agent);
    for (remote, filled) in peer.regions().iter().zip([7, 8]) {
        let target = region(&agent, HostBuffer::new(REGION_BYTES), 0);
        let report = read(&agent, remote, &target).await.unwrap();
        assert_eq!((report.bytes, report.backend), (REGION_BYTES as u64, BackendKind::Shm));
        assert!(target.close().await[0].iter().all(|byte| *byte == filled));
    }
    for (index, (remote, byte)) in peer.regions().iter().zip([40, 41]).enumerate() {
        let source = region(&agent, HostBuffer::new(REGION_BYTES), byte);
        let options = TransferOptions::default().with_notification(format!("written {index}"));
        // Two pieces, and bytes between them that stay as they are.
        let ranges = [(0, 1), (REGION_BYTES as u64 - 1, 1)];
        let (local, remote) = (source.descriptor(ranges), remote.descriptor(ranges));
        agent.write(local.unwrap(), remote.unwrap(), options).await.unwrap();
        assert_eq!(process.ask("notification"), format!("written {index}"));
        assert_eq!(process.ask("close"), format!("{byte} {byte}"));
        let target = region(&agent, HostBuffer::new(8), 0);
        let error = read(&agent, &peer.regions()[index], &target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StaleRegion);
    }
    agent.shutdown().await;
}

/// Returns open files, mappings, and resident KiB of this process.
fn held() -> [usize; 3] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    [std::fs::read_dir("/proc/self/fd").unwrap().count(), mappings, resident]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "alone, for its counts; `cargo test -p dynamo-transfer --test shm -- --ignored flat`"]
async fn a_hundred_thousand_transfers_and_ten_thousand_regions_leave_what_is_held_flat() {
    let (mut process, agent) = (Peer::start(), agent().await);
    let theirs = process.load(&agent);
    let target = region(&agent, HostBuffer::new(PAGE), 0);
    let round = async |process: &mut Peer, count: usize| {
        for index in 0..count {
            read(&agent, &theirs.regions()[index % 2], &target).await.unwrap();
            if index % 10 == 0 {
                // Of the other process, opened and used here, and closed there.
                let kind = if index % 20 == 0 { "shared" } else { "own" };
                let metadata = from_hex(&process.ask(&format!("register {kind}")));
                let peer = agent.load_metadata(&metadata).unwrap();
                let report = read(&agent, &peer.regions()[0], &target).await.unwrap();
                assert_eq!(report.backend, BackendKind::Shm);
                assert_eq!(process.ask("release"), "1");
            }
        }
        let there = process.ask("held");
        let there: Vec<usize> = there.split(' ').map(|count| count.parse().unwrap()).collect();
        [held(), there.try_into().unwrap()]
    };
    let before = round(&mut process, 20_000).await;
    let after = round(&mut process, 80_000).await;
    println!("files, mappings, KiB, here and there: {before:?}, then {after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(after[0] <= before[0] + 8 && after[1] <= before[1] + 64, "{before:?} {after:?}");
        assert!(after[2] <= before[2] + 4096, "{before:?} {after:?}");
    }
    agent.shutdown().await;
}
