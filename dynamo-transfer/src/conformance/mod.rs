//! The suite that every backend passes, over a pair of agents that it connects.

mod ended;
mod memory;
mod moved;
mod refused;

use std::io::Write as _;
use std::time::Duration;

pub use memory::Memory;

use crate::{
    Agent, BackendKind, ErrorKind, Grant, HostBuffer, LocalDescriptor, RegisteredRegion,
    RemoteAgent, RemoteDescriptor, RemoteRegion, Result, Rights, Transfer, TransferOptions,
    TransferReport,
};

/// Runs the whole suite: `initiator` reaches `owner` through `backend`.
///
/// # Panics
/// If the contract is broken.
pub async fn run(owner: &Agent, initiator: &Agent, backend: BackendKind) {
    run_over(owner, initiator, backend, HostBuffer::new).await;
}

/// Runs the whole suite where the owner's memory is as `memory` registers it; `backend` is who is to
/// move the bytes then.
///
/// # Panics
/// If the contract is broken.
pub async fn run_over(owner: &Agent, initiator: &Agent, backend: BackendKind, memory: impl Memory) {
    let pair = &Pair { owner, initiator, backend, memory };
    moved::scattered_ranges_are_exact(pair).await;
    moved::writes_land_where_they_are_granted(pair).await;
    moved::blocks_of_a_layout_go_where_they_are_meant(pair).await;
    moved::transfers_of_every_priority_arrive(pair).await;
    moved::progress_only_grows_and_ends_at_the_total(pair).await;
    moved::nothing_is_moved_for_no_bytes(pair).await;
    moved::ranges_that_overlap_are_left_with_a_mix_of_what_was_meant_for_them(pair).await;
    moved::a_notification_comes_after_the_data(pair).await;
    refused::ranges_outside_are_refused_on_both_sides(pair).await;
    refused::sides_of_different_size_are_refused(pair).await;
    refused::a_write_that_is_refused_has_touched_nothing(pair).await;
    refused::forged_tokens_are_refused(pair).await;
    refused::a_grant_may_be_less_than_the_region_and_may_expire(pair).await;
    refused::a_revoked_region_is_stale_and_its_memory_comes_back(pair).await;
    refused::another_incarnation_is_stale(pair).await;
    ended::what_settles_together_is_waited_for_together(pair).await;
    ended::a_transfer_that_is_given_up_touches_nothing_once_it_is_quiet(pair).await;
    ended::a_deadline_that_has_passed_ends_a_transfer_at_once(pair).await;
}

/// Checks what an initiator does that is configured for few transfers at once.
///
/// # Panics
/// If the contract is broken.
pub async fn run_at_the_limit(
    owner: &Agent,
    initiator: &Agent,
    backend: BackendKind,
    memory: impl Memory,
) {
    let pair = &Pair { owner, initiator, backend, memory };
    refused::transfers_beyond_the_limit_are_refused_and_those_before_them_arrive(pair).await;
}

/// Returns what was started over UCX, or says that `what` is skipped where libucp is missing.
///
/// # Panics
/// If it failed for any other reason: that is a failure of the test.
#[cfg(feature = "ucx")]
pub fn unless_ucx_is_missing<T>(what: &str, started: Result<T>) -> Option<T> {
    let error = match started {
        Ok(started) => return Some(started),
        Err(error) => error,
    };
    // In the words of the loader: one that is there and cannot be used is no reason to skip.
    let is_missing =
        error.kind() == ErrorKind::BackendUnavailable && error.message().contains("No such file");
    assert!(is_missing, "{what}: {error}");
    skipped(&format!("{what}: {error}; apt-get install libucx0"));
    None
}

/// Says what is skipped, past the capture of passing tests' output.
///
/// # Panics
/// If the process has no standard error.
pub fn skipped(what: &str) {
    let line = format!("SKIPPED: {what}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("a test can say so");
}

/// The agents that a backend connects, and the owner's memory.
struct Pair<'a, M> {
    owner: &'a Agent,
    initiator: &'a Agent,
    backend: BackendKind,
    memory: M,
}

impl<M: Memory> Pair<'_, M> {
    /// Registers the owner's memory, and loads what it grants.
    async fn offer(&self, bytes: &[u8], rights: Rights) -> (M::Region, RemoteRegion) {
        let region = self.memory.register(self.owner, &[bytes], rights).await;
        let peer = self.load(&[self.memory.grant(&region)]);
        (region, peer.regions()[0].clone())
    }

    fn load(&self, grants: &[Grant]) -> RemoteAgent {
        let metadata = self.owner.metadata(grants.iter().copied()).expect("of its own");
        self.initiator.load_metadata(&metadata).expect("good")
    }

    /// Registers memory of the initiator that holds nothing.
    fn target(&self, len: usize) -> RegisteredRegion<HostBuffer> {
        self.initiator.register_mut(vec![self.memory.allocate(len)]).expect("registers")
    }

    /// Registers memory of the initiator that holds `bytes`.
    fn source(&self, bytes: &[u8]) -> RegisteredRegion<HostBuffer> {
        let mut buffer = self.memory.allocate(bytes.len());
        buffer.copy_from_slice(bytes);
        self.initiator.register_mut(vec![buffer]).expect("registers")
    }

    /// Posts a read of one range into the same one of `local`.
    fn read(
        &self,
        local: &RegisteredRegion<HostBuffer>,
        remote: &RemoteRegion,
        range: (u64, u64),
        options: TransferOptions,
    ) -> Transfer {
        let (local, remote) = both(local, remote, range);
        self.initiator.read(local, remote, options)
    }

    /// Posts a write of one range into the same one of `remote`.
    fn write(
        &self,
        local: &RegisteredRegion<HostBuffer>,
        remote: &RemoteRegion,
        range: (u64, u64),
        options: TransferOptions,
    ) -> Transfer {
        let (local, remote) = both(local, remote, range);
        self.initiator.write(local, remote, options)
    }

    /// Reads one range into memory of its own.
    async fn read_one(&self, remote: &RemoteRegion, range: (u64, u64)) -> Result<TransferReport> {
        let target = self.target(usize::try_from(range.1).expect("small"));
        let local = target.descriptor([(0, range.1)])?;
        self.initiator.read(local, remote.descriptor([range])?, usual()).await
    }
}

/// Describes the same range on both sides.
fn both(
    local: &RegisteredRegion<HostBuffer>,
    remote: &RemoteRegion,
    range: (u64, u64),
) -> (LocalDescriptor, RemoteDescriptor) {
    (local.descriptor([range]).expect("inside"), remote.descriptor([range]).expect("inside"))
}

fn usual() -> TransferOptions {
    TransferOptions::default()
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// Waits for what is about to hang if it takes longer.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends")
}

/// Never zero, so that untouched bytes can be told apart.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0u8..=250).map(|byte| byte.wrapping_add(seed) | 1).collect();
    let mut bytes = vec![0; len];
    bytes.chunks_mut(period.len()).for_each(|chunk| chunk.copy_from_slice(&period[..chunk.len()]));
    bytes
}

fn pick(bytes: &[u8], ranges: &[(u64, u64)]) -> Vec<u8> {
    ranges.iter().flat_map(|&(offset, len)| &bytes[at(offset)..at(offset + len)]).copied().collect()
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

/// A peer may be silent for half of it before whoever waits gives it up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What no backend moves before whoever has posted it goes on.
const LARGE: usize = 64 << 20;
