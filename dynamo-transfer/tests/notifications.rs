//! Notifications wait for a reader that is slow, take no more room than they may, and end with their
//! agent, whatever carries them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dynamo_transfer::{
    Agent, AgentConfig, ErrorKind, HostBuffer, MemoryFabric, RemoteAgent, TransferOptions,
};
#[cfg(feature = "ucx")]
use dynamo_transfer::{UcxConfig, conformance::unless_ucx_is_missing};
use futures::StreamExt as _;
use futures::future::join_all;
use tokio::net::TcpListener;

/// Two agents, one of which reaches the other.
struct Pair {
    owner: Agent,
    initiator: Agent,
    peer: RemoteAgent,
}

impl Pair {
    async fn new(owner: AgentConfig, initiator: AgentConfig) -> Self {
        let owner = Agent::start(owner.with_name("owner")).await.unwrap();
        let initiator = Agent::start(initiator.with_name("initiator")).await.unwrap();
        let peer = initiator.load_metadata(&owner.metadata([]).unwrap()).unwrap();
        Self { owner, initiator, peer }
    }

    async fn over_memcpy(owner: AgentConfig) -> Self {
        let fabric = MemoryFabric::new();
        let initiator = AgentConfig::default().with_fabric(fabric.clone());
        Self::new(owner.with_fabric(fabric), initiator).await
    }

    async fn over_tcp(owner: AgentConfig) -> Self {
        let owner = owner.with_tcp_listen("127.0.0.1:0".parse().unwrap());
        Self::new(owner, AgentConfig::default()).await
    }

    #[cfg(target_os = "linux")]
    async fn over_shm(owner: AgentConfig) -> Self {
        Self::new(owner.with_shm(true), AgentConfig::default()).await
    }

    /// None, and says so, where UCX is missing.
    #[cfg(feature = "ucx")]
    async fn over_ucx(owner: AgentConfig) -> Option<Self> {
        let config = AgentConfig::default().with_ucx(UcxConfig::default());
        let started = Agent::start(config.clone()).await;
        unless_ucx_is_missing("notifications over UCX", started)?.shutdown().await;
        Some(Self::new(owner.with_ucx(UcxConfig::default()), config).await)
    }

    async fn notify(&self, number: u8) -> dynamo_transfer::Result<()> {
        self.initiator.notify(&self.peer, vec![number].into()).await
    }
}

/// One waits for its reader when the agent shuts down, and another one comes later.
async fn end_as_closed(pair: Pair) {
    pair.notify(0).await.unwrap();
    let mut waiting = Box::pin(pair.notify(1));
    for _ in 0..100 {
        assert!(futures::poll!(&mut waiting).is_pending(), "the queue of the peer is full");
        tokio::task::yield_now().await;
    }
    let ended = async {
        let (waited, ()) = futures::join!(waiting, pair.initiator.shutdown());
        [waited.unwrap_err(), pair.notify(2).await.unwrap_err()]
    };
    // The deadline comes later.
    for error in tokio::time::timeout(PATIENCE, ended).await.expect("at once") {
        assert_eq!((error.kind(), error.peer()), (ErrorKind::Closed, Some("owner")), "{error}");
    }
    pair.owner.shutdown().await;
}

fn one_waits() -> AgentConfig {
    AgentConfig::default().with_notifications_max(1)
}

#[tokio::test]
async fn over_memcpy_what_an_agent_notifies_ends_as_closed_when_it_shuts_down() {
    end_as_closed(Pair::over_memcpy(one_waits()).await).await;
}

#[tokio::test]
async fn over_tcp_what_an_agent_notifies_ends_as_closed_when_it_shuts_down() {
    end_as_closed(Pair::over_tcp(one_waits()).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn over_shm_what_an_agent_notifies_ends_as_closed_when_it_shuts_down() {
    end_as_closed(Pair::over_shm(one_waits()).await).await;
}

#[cfg(feature = "ucx")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_ucx_what_an_agent_notifies_ends_as_closed_when_it_shuts_down() {
    if let Some(pair) = Pair::over_ucx(one_waits()).await {
        end_as_closed(pair).await;
    }
}

/// A reader that takes nothing for long, and goes on.
async fn wait_for_their_reader(pair: Pair) {
    let mut notifications = pair.owner.notifications().unwrap();
    // More than there is room for: those beyond wait, and fail when nobody reads.
    let outcomes = join_all((0..5).map(|number| pair.notify(number))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(|sent| sent.map_err(|e| e.kind())).collect();
    let refused = Err(ErrorKind::Overloaded);
    assert_eq!(outcomes, [Ok(()), Ok(()), refused, refused, refused]);
    // And do not when somebody does, late as it is.
    let reader = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut read = Vec::new();
        while read.len() < 22 {
            read.push(notifications.recv().await.unwrap().payload[0]);
        }
        read
    };
    let senders = join_all((5..25).map(|number| pair.notify(number)));
    let (read, sent) = futures::join!(reader, senders);
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let expected: Vec<u8> = (0..2).chain(5..25).collect();
    assert_eq!(read, expected, "none is lost, and each sender's come in order");
}

fn two_wait() -> AgentConfig {
    AgentConfig::default().with_notifications_max(2)
}

#[tokio::test(start_paused = true)]
async fn over_memcpy_senders_wait_for_a_reader_that_is_slow() {
    wait_for_their_reader(Pair::over_memcpy(two_wait()).await).await;
}

#[tokio::test(start_paused = true)]
async fn over_tcp_senders_wait_for_a_reader_that_is_slow() {
    wait_for_their_reader(Pair::over_tcp(two_wait()).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn over_shm_senders_wait_for_a_reader_that_is_slow() {
    wait_for_their_reader(Pair::over_shm(two_wait()).await).await;
}

#[tokio::test]
async fn notifications_are_a_stream_that_ends_with_their_agent_once_all_are_read() {
    let pair = Pair::over_memcpy(two_wait()).await;
    let mut notifications = pair.owner.notifications().unwrap();
    let mut first = notifications.next();
    assert!(futures::poll!(&mut first).is_pending());
    pair.notify(0).await.unwrap();
    assert_eq!(first.await.unwrap().payload[..], [0]);
    pair.notify(1).await.unwrap();
    pair.owner.shutdown().await;
    let rest = tokio::time::timeout(PATIENCE, notifications.by_ref().collect::<Vec<_>>());
    let rest = rest.await.expect("it ends");
    assert_eq!(rest.iter().map(|rest| rest.payload[0]).collect::<Vec<_>>(), [1]);
    assert!(notifications.next().await.is_none() && notifications.recv().await.is_none());
}

#[tokio::test]
async fn whoever_waits_for_notifications_is_told_when_their_agent_shuts_down() {
    let pair = Pair::over_memcpy(two_wait()).await;
    let mut notifications = pair.owner.notifications().unwrap();
    let both = async { futures::join!(notifications.recv(), pair.owner.shutdown()) };
    let (told, ()) = tokio::time::timeout(PATIENCE, both).await.expect("it is woken");
    assert_eq!(told, None);
}

/// A peer that takes connections and never answers.
async fn silent(initiator: AgentConfig) -> (Pair, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let owner = AgentConfig::default().with_tcp_listen("127.0.0.1:0".parse().unwrap());
    let owner = owner.with_tcp_advertise(listener.local_addr().unwrap());
    (Pair::new(owner, initiator).await, listener)
}

#[tokio::test]
async fn what_is_dropped_before_it_was_sent_keeps_no_payload() {
    let (pair, _listener) = silent(AgentConfig::default()).await;
    let payload = Arc::new(vec![7; 64 << 10]);
    for _ in 0..1000 {
        let payload = Bytes::from_owner(Counted(Arc::clone(&payload)));
        let mut notified = Box::pin(pair.initiator.notify(&pair.peer, payload));
        assert!(futures::poll!(&mut notified).is_pending());
    }
    let kept = Arc::strong_count(&payload) - 1;
    assert!(kept <= 64, "{kept} payloads are kept that nobody waits for");
}

#[tokio::test]
async fn an_agent_that_has_shut_down_keeps_no_payload() {
    let (pair, _listener) = silent(AgentConfig::default()).await;
    let payload = Arc::new(vec![7; 64 << 10]);
    let notify = |_| {
        let payload = Bytes::from_owner(Counted(Arc::clone(&payload)));
        pair.initiator.notify(&pair.peer, payload)
    };
    let mut waiting = Box::pin(join_all((0..10).map(notify)));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert_eq!(Arc::strong_count(&payload), 11);
    pair.initiator.shutdown().await;
    let late = notify(10).await;
    for sent in waiting.await.into_iter().chain([late]) {
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(Arc::strong_count(&payload), 1);
}

struct Counted(Arc<Vec<u8>>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[tokio::test]
async fn notifications_count_among_what_is_posted() {
    let (pair, _listener) = silent(AgentConfig::default().with_transfers_max(2)).await;
    let (mut first, mut second) = (Box::pin(pair.notify(0)), Box::pin(pair.notify(1)));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    assert_eq!(pair.notify(2).await.unwrap_err().kind(), ErrorKind::Overloaded);
    let region = pair.initiator.register_mut(vec![HostBuffer::new(8)]).unwrap();
    let own = pair.initiator.metadata([region.grant()]).unwrap();
    let own = pair.initiator.load_metadata(&own).unwrap();
    let read = || {
        let (local, remote) = (region.descriptor([]), own.regions()[0].descriptor([]));
        pair.initiator.read(local.unwrap(), remote.unwrap(), TransferOptions::default())
    };
    assert_eq!(read().await.unwrap_err().kind(), ErrorKind::Overloaded);
    drop(first);
    read().await.unwrap();
    let mut third = Box::pin(pair.notify(3));
    assert!(futures::poll!(&mut third).is_pending(), "there is room again");
}

const PATIENCE: Duration = Duration::from_secs(20);
