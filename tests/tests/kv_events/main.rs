//! Events of real block managers over a runtime that loses some: no answer changes, and a router
//! knows in the end what its workers hold.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod fleet;

use dynamo_core::protocol::InstanceId;
use fleet::Fleet;

const BACKLOG: usize = 4096;

#[tokio::test(start_paused = true)]
async fn losing_events_changes_no_answer_and_the_index_converges() {
    let mut answers = Vec::new();
    for (lost_percent, seed) in [(0, 1), (5, 2), (5, 3), (40, 4)] {
        let mut fleet = Fleet::start(4, lost_percent, seed, BACKLOG).await;
        answers.push(fleet.converse(9, 8).await);
        fleet.converge().await;
        let stats = fleet.router.event_stats();
        assert_eq!(stats.gaps_total > 0, lost_percent > 0, "{stats:?}");
        assert_eq!((stats.suspect, stats.dropped_total), (0, 0), "{stats:?}");
        fleet.stop().await;
    }
    // What a worker reuses it finds in its own blocks, never in what a router believes of them.
    assert!(answers[1..].iter().all(|some| *some == answers[0]));
    // Blocks that are wrong would show: the answers to different prompts differ.
    let mut distinct = answers.remove(0);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 9 * 8);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_was_restarted_knows_what_silent_workers_hold() {
    let mut fleet = Fleet::start(3, 0, 1, BACKLOG).await;
    fleet.converse(4, 4).await;
    fleet.restart_router().await;
    fleet.converge().await;
    let stats = fleet.router.event_stats();
    assert_eq!((stats.events_total, stats.workers), (0, 3), "{stats:?}");
    assert!(stats.blocks > 0 && stats.snapshots_total >= 3, "{stats:?}");
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_forgotten_and_is_still_there_is_known_again_without_a_word() {
    let mut fleet = Fleet::start(3, 0, 1, BACKLOG).await;
    fleet.converse(4, 4).await;
    fleet.converge().await;
    let events = fleet.router.event_stats().events_total;
    fleet.router.forget(fleet.workers[0].id);
    assert!(!fleet.has_converged().await);
    fleet.converge().await;
    assert_eq!(fleet.router.event_stats().events_total, events);
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_restarted_is_known_anew_whatever_of_its_events_is_lost() {
    let mut fleet = Fleet::start(3, 30, 5, BACKLOG).await;
    fleet.converse(5, 4).await;
    for _ in 0..3 {
        fleet.restart(0).await;
        fleet.converse(5, 2).await;
    }
    fleet.converge().await;
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_plane_has_no_room_for_is_made_up_for() {
    // The task of the feed runs when the test waits: of what is published before, two are heard.
    let mut fleet = Fleet::start(3, 0, 6, 2).await;
    fleet.converge().await;
    for worker in &fleet.workers {
        worker.manager.clear();
    }
    fleet.converse(6, 3).await;
    fleet.converge().await;
    assert!(fleet.router.event_stats().gaps_total > 0);
    fleet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_snapshots_is_forgotten_at_a_gap_and_the_others_are_not() {
    let mut fleet = Fleet::start(2, 0, 8, BACKLOG).await;
    fleet.join(InstanceId(9), 1, false).await;
    *fleet.lossy.lost_percent.lock().unwrap() = 20;
    fleet.converse(9, 8).await;
    let dropped = async {
        while fleet.router.event_stats().dropped_total == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), dropped).await.unwrap();
    assert_eq!(fleet.router.event_stats().suspect, 0);
    fleet.stop().await;
}
