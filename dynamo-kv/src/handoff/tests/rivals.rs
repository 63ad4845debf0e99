use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::metrics::Registry;

use super::super::message::Attempt;
use super::*;
use crate::metrics::HandoffMetrics;

/// Runs a pull until it reads, and stops it there.
async fn until_it_reads(pull: &mut (impl Future<Output = Result<Pulled>> + Unpin), of: &Worker) {
    while of.manager.stats().mutable == 0 {
        tokio::select! {
            biased;
            _ = &mut *pull => unreachable!("the transfer is done by a thread"),
            () = tokio::task::yield_now() => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_is_dropped_shares_nothing_and_leaves_the_blocks_to_others() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let sequence = sequence(0);
    let mut pull = Box::pin(decode.handoff.pull([staged.ticket()], &sequence, None));
    until_it_reads(&mut pull, &decode).await;
    drop(pull);
    let before = Instant::now();
    let pulled = decode.handoff.pull([staged.ticket()], &sequence, None).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(2), "it need not wait for the lease");
    assert_eq!(pulled.report.blocks_pulled, 3);
    drop(pulled);
    // The agent's tasks drop the last hold on the memory; they have run when the agent has ended.
    decode.agent.shutdown().await;
    decode.assert_at_rest(2);
    let stats = decode.handoff.stats();
    assert_eq!((stats.pulls_dropped_total, stats.pulls_completed_total), (1, 1), "{stats:?}");
    assert_eq!(prefill.handoff.stats().stages_pulled_total, 1);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_move_along_is_overtaken_and_shares_nothing() {
    let fabric = MemoryFabric::new();
    let prefill = worker("prefill", Some(&fabric), 8).await;
    let (frozen, other) =
        (worker("frozen", Some(&fabric), 8).await, worker("other", Some(&fabric), 8).await);
    let mut staged = prefill.stage(0);
    let sequence = sequence(0);
    let ticket = staged.ticket().clone();
    let mut pull = Box::pin(frozen.handoff.pull([&ticket], &sequence, None));
    until_it_reads(&mut pull, &frozen).await;
    let pulled = other.handoff.pull([staged.ticket()], &sequence, None).await.unwrap();
    assert!(pulled.blocks[1].iter().all(|&byte| byte == fill(0, 1)));
    assert_eq!(staged.settled().await, Settlement::Pulled);
    // Its bytes may have arrived: the owner has given them to somebody else.
    assert_eq!(pull.await.unwrap_err().kind(), ErrorKind::NotFound);
    frozen.agent.shutdown().await;
    frozen.assert_at_rest(0);
    assert_eq!(frozen.handoff.stats().pulls_refused_total, 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_puller_is_refused_while_the_first_moves_along() {
    let (prefill, decode) = pair().await;
    let staged = prefill.stage(0);
    let stage = Ticket::decode(staged.ticket()).unwrap().id;
    let first_moves = |moved| {
        let (attempt, from) = (Attempt([1; 16]), Bytes::new());
        let claim = Message::Claim { stage, attempt, moved, from };
        prefill.handoff.0.owner.asked(&prefill.agent, claim).unwrap()
    };
    first_moves(0);
    let sequence = sequence(0);
    let pull = decode.handoff.pull([staged.ticket()], &sequence, None);
    let moves = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        first_moves(10);
    };
    let (refused, ()) = tokio::join!(pull, moves);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    decode.assert_at_rest(0);
    assert_eq!(prefill.handoff.staged_blocks(), 3);
    assert_eq!(decode.handoff.stats().pulls_refused_total, 1);
}

#[tokio::test]
async fn the_page_tells_how_hand_offs_have_ended() {
    let (prefill, decode) = pair().await;
    let (registry, staged) = (Registry::default(), prefill.stage(0));
    let sources = [&prefill, &decode].map(|worker| Arc::new(HandoffMetrics::new(&worker.handoff)));
    sources.iter().for_each(|source| registry.add(source));
    let lines = |expected: &[&str]| {
        let page = registry.render();
        for line in expected {
            assert!(page.lines().any(|its| its == *line), "{line} in\n{page}");
        }
    };
    lines(&["dynamo_handoff_staged_blocks{agent=\"prefill\"} 3"]);
    drop(decode.handoff.pull([staged.ticket()], &sequence(0), None).await.unwrap());
    let again = decode.handoff.pull([staged.ticket()], &sequence(0), None).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::NotFound);
    drop(prefill.stage(50));
    let bytes = 3 * prefill.manager.layout().block_bytes();
    lines(&[
        "# TYPE dynamo_handoff_stages_total counter",
        "dynamo_handoff_staged_blocks{agent=\"prefill\"} 0",
        "dynamo_handoff_stages_total{agent=\"prefill\",outcome=\"pulled\"} 1",
        "dynamo_handoff_stages_total{agent=\"prefill\",outcome=\"expired\"} 0",
        "dynamo_handoff_stages_total{agent=\"prefill\",outcome=\"dropped\"} 1",
        "dynamo_handoff_pulls_total{agent=\"decode\",outcome=\"completed\"} 1",
        "dynamo_handoff_pulls_total{agent=\"decode\",outcome=\"refused\"} 1",
        &format!("dynamo_handoff_pulled_bytes_total{{agent=\"decode\"}} {bytes}"),
    ]);
}
