use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, HandoffTicket, InstanceId, WorkerId};
use dynamo_transfer::{AgentConfig, MemoryFabric};

use super::*;
use crate::layout::{BlockLayout, DType};
use crate::manager::ManagerConfig;
use crate::sequence::TokenSequence;

mod rivals;

const TOKENS: usize = 40;

struct Worker {
    handoff: Handoff,
    manager: BlockManager,
    agent: Agent,
}

async fn worker(name: &str, fabric: Option<&MemoryFabric>, blocks: usize) -> Worker {
    worker_with(name, fabric, blocks, HandoffConfig::default()).await
}

async fn worker_with(
    name: &str,
    fabric: Option<&MemoryFabric>,
    blocks: usize,
    handoff: HandoffConfig,
) -> Worker {
    let mut config = AgentConfig::default().with_name(name);
    config = match fabric {
        Some(fabric) => config.with_fabric(fabric.clone()),
        None => config.with_tcp_listen("127.0.0.1:0".parse().unwrap()),
    };
    let agent = Agent::start(config).await.unwrap();
    let layout = BlockLayout::new(2, 2, 64, BlockSize::DEFAULT, DType::F32).unwrap();
    let id = WorkerId::new(InstanceId::random());
    let manager = BlockManager::new(ManagerConfig::new(layout, blocks), id, Box::new(|_| {}));
    let manager = manager.unwrap();
    let handoff = Handoff::new(agent.clone(), manager.clone(), handoff).unwrap();
    Worker { handoff, manager, agent }
}

async fn pair() -> (Worker, Worker) {
    let fabric = MemoryFabric::new();
    (worker("prefill", Some(&fabric), 8).await, worker("decode", Some(&fabric), 8).await)
}

fn sequence(first: u32) -> TokenSequence {
    let tokens: Vec<u32> = (first..).take(TOKENS).collect();
    TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens)
}

/// The byte that fills block `index` of the sequence that starts with `first`.
fn fill(first: u32, index: usize) -> u8 {
    u8::try_from(first as usize % 100 + index + 1).unwrap()
}

impl Worker {
    /// Writes the KV of `sequence(first)`: two full blocks and a tail of eight tokens.
    fn compute(&self, first: u32) -> (Vec<RegisteredBlock>, PartialBlock) {
        let sequence = sequence(first);
        let mut blocks = self.manager.allocate(3).unwrap();
        for (index, block) in blocks.iter_mut().enumerate() {
            block.fill(fill(first, index));
        }
        let tail = blocks.pop().unwrap().into_partial(TOKENS - 32);
        let complete = blocks.into_iter().zip(sequence.keys());
        let complete = complete.map(|(block, key)| block.complete(*key)).collect();
        (self.manager.register_all(complete).into(), tail)
    }

    fn stage(&self, first: u32) -> Staged {
        let (blocks, tail) = self.compute(first);
        self.handoff.stage(blocks, Some(tail)).unwrap()
    }

    /// Nothing held, nothing written: everything is free or cached.
    fn assert_at_rest(&self, cached: usize) {
        let stats = self.manager.stats();
        assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0), "{stats:?}");
        assert_eq!(stats.cached, cached, "{stats:?}");
        assert_eq!(self.handoff.staged_blocks(), 0);
    }
}

async fn a_hand_off_moves_every_byte_and_settles(prefill: Worker, decode: Worker) {
    let mut staged = prefill.stage(0);
    assert_eq!(prefill.handoff.staged_blocks(), 3);
    let pulled = decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap();
    assert_eq!(staged.settled().await, Settlement::Pulled);
    prefill.assert_at_rest(2);

    assert_eq!((pulled.blocks.len(), pulled.tail_tokens), (2, 8));
    for (index, block) in pulled.blocks.iter().enumerate() {
        assert!(block.iter().all(|&byte| byte == fill(0, index)));
    }
    assert!(pulled.tail.as_ref().unwrap().iter().all(|&byte| byte == fill(0, 2)));
    let block_bytes = decode.manager.layout().block_bytes() as u64;
    let report = pulled.report;
    assert_eq!((report.blocks_pulled, report.blocks_cached), (3, 0));
    assert_eq!(report.bytes, 3 * block_bytes);
    drop(pulled);

    // The second time only the tail is missing.
    let staged = prefill.stage(0);
    let pulled = decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap();
    let report = pulled.report;
    assert_eq!((report.blocks_pulled, report.blocks_cached), (1, 2));
    assert_eq!(report.bytes, block_bytes);
    assert!(pulled.tail.as_ref().unwrap().iter().all(|&byte| byte == fill(0, 2)));
    drop((pulled, staged));
    decode.assert_at_rest(2);
    prefill.assert_at_rest(2);
    for worker in [prefill, decode] {
        worker.handoff.shutdown().await;
        worker.agent.shutdown().await;
    }
}

#[tokio::test]
async fn a_hand_off_over_memcpy_moves_every_byte() {
    let (prefill, decode) = pair().await;
    a_hand_off_moves_every_byte_and_settles(prefill, decode).await;
}

#[tokio::test]
async fn a_hand_off_over_tcp_moves_every_byte() {
    let (prefill, decode) = (worker("p", None, 8).await, worker("d", None, 8).await);
    a_hand_off_moves_every_byte_and_settles(prefill, decode).await;
}

/// Nothing is said twice within a pull's time here: a word that is lost fails it.
#[tokio::test]
async fn no_word_is_lost_where_connections_hold() {
    let slow = HandoffConfig::default().with_claim_ttl(Duration::from_secs(400));
    let prefill = worker_with("p", None, 8, slow.clone()).await;
    let decode = worker_with("d", None, 8, slow).await;
    for _ in 0..100 {
        let staged = prefill.stage(0);
        let pulled = decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap();
        assert_eq!(pulled.report.blocks_pulled, 3);
        drop((pulled, staged));
        decode.manager.clear();
        prefill.manager.clear();
    }
}

#[tokio::test]
async fn a_hold_that_has_ended_is_not_found_and_nothing_is_shared() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let ticket = staged.ticket().clone();
    drop(staged);
    prefill.assert_at_rest(2);
    let error = decode.handoff.pull([&ticket], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    decode.assert_at_rest(0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_staged_after_the_ttl() {
    let (prefill, decode) = pair().await;
    let mut first = prefill.stage(0);
    tokio::time::advance(Duration::from_secs(20)).await;
    let mut second = prefill.stage(50);
    assert_eq!(first.settled().await, Settlement::Expired);
    assert_eq!(prefill.handoff.staged_blocks(), 3, "the later hold still stands");
    assert_eq!(second.settled().await, Settlement::Expired);
    assert_eq!(prefill.handoff.staged_blocks(), 0);
    let error = decode.handoff.pull([first.ticket()], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_corrupted_ticket_is_refused_at_every_byte() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let good = staged.ticket().as_bytes().to_vec();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 0x40;
        for bad in [good[..at].to_vec(), flipped] {
            let ticket = HandoffTicket::new(bad);
            let error = decode.handoff.pull([&ticket], &sequence(0), None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "byte {at}");
        }
    }
    decode.assert_at_rest(0);
    decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap();
}

/// A checksum without a key keeps accidents out, not a peer that means harm.
#[tokio::test(start_paused = true)]
async fn a_spoilt_ticket_with_a_right_checksum_shares_nothing_wrong() {
    let (prefill, decode) = pair().await;
    let mut good = prefill.stage(0);
    let signed_part = |staged: &Staged| {
        let bytes = staged.ticket().as_bytes();
        bytes[..bytes.len() - 8].to_vec()
    };
    let mut body = signed_part(&good);
    let signed = |body: &[u8]| HandoffTicket::new([body, &ticket::checksum(body)[..]].concat());
    let (id, claim_ttl, metadata) = (2..26, 26..30, 30 + 35 + 4 + 4 + 2 * 32);
    for at in 0..body.len() {
        if claim_ttl.contains(&at) {
            // The one before was pulled, or has expired.
            good = prefill.stage(0);
            body = signed_part(&good);
        }
        let cut = decode.handoff.pull([&signed(&body[..at])], &sequence(0), None).await;
        assert!(cut.is_err(), "cut at {at}");
        let mut flipped = body.clone();
        flipped[at] ^= 0x01;
        let pulled = decode.handoff.pull([&signed(&flipped)], &sequence(0), None).await;
        // An owner does not answer to another id; the pace is up to the puller; everything else is refused.
        let kind = pulled.as_ref().err().map(Error::kind);
        if id.contains(&at) {
            assert_eq!(kind, Some(ErrorKind::DeadlineExceeded), "byte {at}");
        } else if claim_ttl.contains(&at) {
            assert_eq!(kind, None, "byte {at}");
            drop(pulled);
            decode.manager.clear();
        } else {
            let expected = [ErrorKind::Protocol, ErrorKind::InvalidArgument];
            assert!(kind.is_some_and(|kind| expected.contains(&kind)), "byte {at}: {kind:?}");
            assert!(at < metadata || kind == Some(ErrorKind::Protocol), "byte {at}: {kind:?}");
        }
        decode.assert_at_rest(0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_off_that_has_ended_holds_nothing() {
    let (prefill, _) = pair().await;
    let mut staged = prefill.stage(0);
    let (blocks, tail) = prefill.compute(50);
    prefill.handoff.shutdown().await;
    assert_eq!(staged.settled().await, Settlement::Expired);
    let error = prefill.handoff.stage(blocks, Some(tail)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    prefill.assert_at_rest(4);

    let (prefill, _) = pair().await;
    let mut staged = prefill.stage(0);
    prefill.agent.shutdown().await;
    assert_eq!(staged.settled().await, Settlement::Expired);
    prefill.assert_at_rest(2);

    let (prefill, _) = pair().await;
    let mut staged = prefill.stage(0);
    drop(prefill.handoff);
    assert_eq!(prefill.manager.stats().active, 0);
    assert_eq!(staged.settled().await, Settlement::Expired);
}

#[tokio::test]
async fn a_ticket_for_other_tokens_or_another_layout_is_refused() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let mut longer = sequence(0);
    longer.push(1);
    for other in [sequence(1), longer] {
        let error = decode.handoff.pull([staged.ticket()], &other, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let layout = BlockLayout::new(4, 1, 64, BlockSize::DEFAULT, DType::F32).unwrap();
    let id = WorkerId::new(InstanceId(9));
    let manager = BlockManager::new(ManagerConfig::new(layout, 8), id, Box::new(|_| {})).unwrap();
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let other = Handoff::new(agent, manager, HandoffConfig::default()).unwrap();
    let error = other.pull([staged.ticket()], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    decode.assert_at_rest(0);
}

#[tokio::test]
async fn a_puller_without_room_is_overloaded_and_the_hold_stands() {
    let fabric = MemoryFabric::new();
    let prefill = worker("prefill", Some(&fabric), 8).await;
    let decode = worker("decode", Some(&fabric), 2).await;
    let staged = prefill.stage(0);
    let error = decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    decode.assert_at_rest(0);
    assert_eq!(prefill.handoff.staged_blocks(), 3);
}

#[tokio::test]
async fn an_owner_that_has_gone_is_unavailable() {
    let (prefill, decode) = (worker("p", None, 8).await, worker("d", None, 8).await);
    let staged = prefill.stage(0);
    prefill.agent.shutdown().await;
    let error = decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    decode.assert_at_rest(0);
}

#[tokio::test]
async fn tickets_that_do_not_make_up_the_heads_and_configurations_that_cannot_be_are_refused() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let twice = [staged.ticket(), staged.ticket()];
    let error = decode.handoff.pull(twice, &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = decode.handoff.pull([], &sequence(0), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    let day = Duration::from_secs(24 * 60 * 60 + 1);
    let configs = [
        HandoffConfig::default().with_claim_ttl(Duration::ZERO),
        HandoffConfig::default().with_ttl_max(day),
    ];
    for config in configs {
        let agent = Agent::start(AgentConfig::default()).await.unwrap();
        let error = Handoff::new(agent, decode.manager.clone(), config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_ends_the_pull() {
    let (prefill, decode) = (worker("p", None, 8).await, worker("d", None, 8).await);
    let staged = prefill.stage(0);
    let passed = Instant::now().into_std();
    let sequence = sequence(0);
    let pull = decode.handoff.pull([staged.ticket()], &sequence, Some(passed));
    assert_eq!(pull.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    decode.agent.shutdown().await;
    decode.assert_at_rest(0);
}
