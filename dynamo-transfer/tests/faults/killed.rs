//! Peers that are killed in the middle of transfers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dynamo_transfer::conformance::skipped;
use dynamo_transfer::{BackendKind, HostBuffer};
use futures::future::join_all;
use tokio::task::JoinSet;

use crate::agents::{
    PATIENCE, REGION_BYTES, SLACK, agent, backends, begun, block_on, close, move_all, say, target,
};
use crate::held::Held;
use crate::process::{Process, load};

#[test]
fn an_owner_killed_in_the_middle_is_an_error_within_2_s_and_leaves_nothing_behind() {
    each_backend(survivors, 6, kill_owners);
}

#[test]
fn an_initiator_killed_in_the_middle_gives_the_memory_back_and_leaves_nothing_behind() {
    each_backend(survivors, 5, kill_initiators);
}

/// Over UCX with whatever version there is: before 1.22 it may end this process, which is why
/// `cargo xtask test` kills nobody over those.
#[test]
#[ignore = "minutes; `cargo test -p dynamo-transfer --features ucx --test faults -- --ignored --nocapture killed_200`"]
fn owners_killed_200_times_leave_nothing_behind() {
    each_backend(backends, 200, kill_owners);
}

#[test]
#[ignore = "minutes; as the owners"]
fn initiators_killed_200_times_leave_nothing_behind() {
    each_backend(backends, 200, kill_initiators);
}

fn each_backend(
    backends: impl AsyncFn() -> Vec<BackendKind>,
    times: usize,
    kill: impl AsyncFn(BackendKind, usize),
) {
    block_on(async {
        for backend in backends().await {
            kill(backend, times).await;
        }
    });
}

/// Returns the backends that no kill of a peer is known to end this process over.
async fn survivors() -> Vec<BackendKind> {
    let mut backends = backends().await;
    if may_abort() && backends.contains(&BackendKind::Ucx) {
        backends.retain(|backend| *backend != BackendKind::Ucx);
        skipped("kills over UCX: libucp before 1.22 may abort the process; run with -- --ignored");
    }
    backends
}

#[cfg(feature = "ucx")]
fn may_abort() -> bool {
    dynamo_transfer::UcxConfig::default()
        .library_version()
        .is_ok_and(|version| version < (1, 22, 0))
}

#[cfg(not(feature = "ucx"))]
fn may_abort() -> bool {
    false
}

/// Rounds after which the process has all the threads and connections that it will have.
const WARMING_UP: usize = 4;

/// Kills owners while they are read and written; each time transfers end in time, and the
/// memory comes back.
async fn kill_owners(backend: BackendKind, times: usize) {
    let agent = agent("initiator", backend).await;
    let (mut ends, mut hits, mut before) = (Ends::default(), 0, None);
    for round in 0..times {
        if round == WARMING_UP {
            before = Some(Held::now(&agent));
        }
        let mut owner = Process::start();
        // Memory that is mapped, and memory that is not; read and written.
        let metadata = owner.own(backend, if round % 4 < 2 { "plain" } else { "shared" });
        let (peer, region) = (load(&agent, &metadata), target(&agent));
        let post = || move_all(&agent, &peer, &region, PATIENCE, round % 2 == 1);
        let warming_up = Instant::now();
        post().await.unwrap();
        let took = warming_up.elapsed();
        let mut transfers = JoinSet::new();
        let posted = Instant::now();
        for transfer in [post(), post(), post(), post()] {
            transfers.spawn(async { (transfer.await, Instant::now()) });
        }
        // Somewhere in the middle of them, another place each time.
        while posted.elapsed() < took * u32::try_from(round % 16).unwrap() / 8 {
            tokio::task::yield_now().await;
        }
        let before_it = ends.after.len();
        let killed = Instant::now();
        owner.kill();
        let ended = tokio::time::timeout(PATIENCE, transfers.join_all()).await;
        for ended in ended.expect("nothing outlives its deadline") {
            ends.add(ended, killed);
        }
        hits += usize::from(ends.after.len() > before_it);
        assert_eq!(close(region).await.len(), REGION_BYTES);
        assert_eq!(agent.stats().regions, 0);
    }
    let left = before.unwrap().again(&agent).await;
    let ends = ends.summary();
    say(&format!(
        "{backend}: {times} owners killed, {hits} of them in transfers: {ends}; {left:?}"
    ));
    assert!(hits > times / 2, "only {hits} kills met a transfer: {ends}");
    agent.shutdown().await;
}

/// How transfers under a kill ended.
#[derive(Default)]
struct Ends {
    complete: usize,
    kinds: BTreeMap<String, usize>,
    after: Vec<Duration>,
}

impl Ends {
    fn add(
        &mut self,
        (outcome, at): (dynamo_transfer::Result<dynamo_transfer::TransferReport>, Instant),
        killed: Instant,
    ) {
        match outcome {
            Ok(_) => self.complete += 1,
            Err(error) => {
                assert!(error.is_retryable(), "{error}: {:?}", error.kind());
                *self.kinds.entry(format!("{:?}", error.kind())).or_default() += 1;
                let after = at.saturating_duration_since(killed);
                assert!(after < SLACK, "{error} after {after:?}");
                self.after.push(after);
            }
        }
    }

    fn summary(&self) -> String {
        let mut after = self.after.clone();
        after.sort();
        let at = |part: usize| after.get(after.len() * part / 100).copied().unwrap_or_default();
        let (p50, p99, max) = (at(50), at(99), after.last().copied().unwrap_or_default());
        let Self { complete, kinds, .. } = self;
        format!("{complete} complete, {kinds:?}, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")
    }
}

/// Kills writers, one and two of them at once by turns; each time the memory comes back.
async fn kill_initiators(backend: BackendKind, times: usize) {
    let agent = agent("owner", backend).await;
    let (mut closing, mut before) = (Vec::new(), None);
    for round in 0..times {
        if round == WARMING_UP {
            before = Some(Held::now(&agent));
        }
        // Memory that is mapped, and memory that is not.
        let memory = match round % 2 {
            0 => HostBuffer::new(REGION_BYTES),
            _ => HostBuffer::shared(REGION_BYTES).unwrap(),
        };
        let region = agent.register_peer_writable(vec![memory]).unwrap();
        let metadata = agent.metadata([region.grant()]).unwrap();
        let mut initiators: Vec<_> = (0..=round % 2).map(|_| Process::start()).collect();
        for initiator in &mut initiators {
            initiator.write(backend, &metadata);
        }
        tokio::time::sleep(Duration::from_millis(round as u64 % 8)).await;
        let killed = Instant::now();
        initiators.iter_mut().for_each(Process::kill);
        assert_eq!(close(region).await.len(), REGION_BYTES);
        closing.push(killed.elapsed());
        assert_eq!(agent.stats().regions, 0);
    }
    let left = before.unwrap().again(&agent).await;
    closing.sort();
    let (p50, max) = (closing[times / 2], closing[times - 1]);
    say(&format!(
        "{backend}: {times} initiators killed, closed p50 {p50:.1?}, max {max:.1?}; {left:?}"
    ));
    agent.shutdown().await;
}

#[test]
fn others_are_served_while_a_peer_is_killed() {
    block_on(async {
        for backend in survivors().await {
            let agent = agent("initiator", backend).await;
            let (mut dying, metadata) = Process::owner(backend);
            let (living, others) = Process::owner(backend);
            let (dead, alive) = (load(&agent, &metadata), load(&agent, &others));
            let (lost, region) = (target(&agent), target(&agent));
            let cut_off = move_all(&agent, &dead, &lost, PATIENCE, false);
            begun(&cut_off).await;
            let served = (0..4).map(|_| move_all(&agent, &alive, &region, PATIENCE, false));
            let served: Vec<_> = served.collect();
            dying.kill();
            for outcome in join_all(served).await {
                assert_eq!(outcome.unwrap().backend, backend);
            }
            // It may have been complete.
            let _ = cut_off.await;
            close(lost).await;
            close(region).await;
            agent.shutdown().await;
            drop(living);
        }
    });
}
