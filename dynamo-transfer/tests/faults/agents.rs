//! Agents of the tests, by backend.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

#[cfg(feature = "ucx")]
use dynamo_transfer::conformance::unless_ucx_is_missing;
use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, HostBuffer, RegisteredRegion, RemoteAgent, Transfer,
    TransferOptions,
};

use crate::eventually::eventually;
use crate::reached::reached_over;

/// What each agent here has registered of what it serves: many stripes of every backend.
pub(crate) const REGION_BYTES: usize = 64 << 20;

/// What nothing takes that is not about to hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a busy machine may be late by.
pub(crate) const SLACK: Duration = Duration::from_secs(2);

/// Runs a test, one after the other: some count what the process has open.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all();
    runtime.build().unwrap().block_on(future)
}

/// Returns the backends that reach other processes of this host.
pub(crate) async fn backends() -> Vec<BackendKind> {
    let mut backends = vec![BackendKind::Tcp, BackendKind::Shm];
    backends.extend(ucx().await);
    backends
}

#[cfg(feature = "ucx")]
async fn ucx() -> Option<BackendKind> {
    let probe = Agent::start(config("probe", BackendKind::Ucx)).await;
    unless_ucx_is_missing("faults over UCX", probe)?.shutdown().await;
    Some(BackendKind::Ucx)
}

#[cfg(not(feature = "ucx"))]
fn ucx() -> std::future::Ready<Option<BackendKind>> {
    std::future::ready(None)
}

/// Configures an agent that is reached, and reaches others, over one backend.
pub(crate) fn config(name: &str, backend: BackendKind) -> AgentConfig {
    reached_over(backend).with_name(name)
}

/// So too, and over TCP at `address`.
pub(crate) fn config_at(name: &str, backend: BackendKind, address: SocketAddr) -> AgentConfig {
    config(name, backend).with_tcp_listen(address)
}

pub(crate) async fn agent(name: &str, backend: BackendKind) -> Agent {
    Agent::start(config(name, backend)).await.unwrap()
}

pub(crate) fn target(agent: &Agent) -> RegisteredRegion<HostBuffer> {
    agent.register_mut(vec![HostBuffer::new(REGION_BYTES)]).unwrap()
}

/// Reads the whole of a peer's first region.
pub(crate) fn read(
    agent: &Agent,
    peer: &RemoteAgent,
    region: &RegisteredRegion<HostBuffer>,
    deadline: Duration,
) -> Transfer {
    move_all(agent, peer, region, deadline, false)
}

/// Reads or writes the whole of a peer's first region.
pub(crate) fn move_all<B: Send + Sync + 'static>(
    agent: &Agent,
    peer: &RemoteAgent,
    region: &RegisteredRegion<B>,
    deadline: Duration,
    is_write: bool,
) -> Transfer {
    let whole = [(0, region.len())];
    let options = TransferOptions::default().with_deadline(deadline);
    let (local, remote) = (region.descriptor(whole), peer.regions()[0].descriptor(whole));
    if is_write {
        agent.write(local.unwrap(), remote.unwrap(), options)
    } else {
        agent.read(local.unwrap(), remote.unwrap(), options)
    }
}

/// Waits until some of it has moved.
pub(crate) async fn begun(transfer: &Transfer) {
    eventually("some of it moves", || transfer.progress().bytes_moved > 0).await;
}

/// Closes a region, which must not take long.
pub(crate) async fn close<B: Send + Sync + 'static>(region: RegisteredRegion<B>) -> B {
    let closed = tokio::time::timeout(PATIENCE, region.close()).await;
    closed.expect("nothing holds the memory").remove(0)
}

/// Says a line past the capture of passing tests' output.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}
