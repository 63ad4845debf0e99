//! The conversations sent once, by one policy, and what came of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dynamo_examples::client;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::conversation::{Conversation, TURNS, USERS, order};
use crate::engine::{CacheCount, MODEL};
use crate::fleet::{Finished, Fleet};

/// What one pass came to.
#[derive(Debug)]
pub(crate) struct Pass {
    policy: &'static str,
    /// In the order of asking.
    pub(crate) answers: Vec<Heard>,
    /// What both servers counted meanwhile.
    pub(crate) count: CacheCount,
    pub(crate) finished: Vec<Finished>,
}

/// An answer at the client.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) text: String,
    /// From asking to the first text.
    ttft: Duration,
}

impl Pass {
    /// Sends all conversations by a front end that chooses by `policy`, to caches that are empty.
    pub(crate) async fn run(fleet: &Fleet, policy: &'static str) -> Result<Self> {
        fleet.reset().await?;
        let before = counted(fleet).await?;
        let front_end = fleet.front_end(&format!("front-end-{policy}"), policy, None).await?;
        let answers = converse(front_end.address).await?;
        let finished = front_end.end().await?;
        let after = counted(fleet).await?;
        ensure!(
            finished.len() == answers.len(),
            "the front end told of {} requests, not {}",
            finished.len(),
            answers.len()
        );
        let hits = after.hits - before.hits;
        let count = CacheCount { hits, queries: after.queries - before.queries };
        Ok(Self { policy, answers, count, finished })
    }

    /// Prints the heads of the columns of [`print`](Self::print).
    pub(crate) fn print_head() {
        println!(
            "\n{:<12} {:>8} {:>8} {:>9}  {:>9} {:>9} {:>9}  served",
            "policy", "hits", "queries", "hit rate", "TTFT mean", "p50", "max"
        );
    }

    /// Prints a line of figures: the servers' hits and queries in tokens, TTFT in seconds.
    pub(crate) fn print(&self) {
        let mut ttft: Vec<f64> =
            self.answers.iter().map(|heard| heard.ttft.as_secs_f64()).collect();
        ttft.sort_by(f64::total_cmp);
        let mean = ttft.iter().sum::<f64>() / ttft.len() as f64;
        let mut served = BTreeMap::<&str, usize>::new();
        for finished in &self.finished {
            *served.entry(finished.worker()).or_default() += 1;
        }
        let served: Vec<_> = served.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let CacheCount { hits, queries } = self.count;
        println!(
            "{:<12} {hits:>8} {queries:>8} {:>7.1} %  {mean:>7.2} s {:>7.2} s {:>7.2} s  {}",
            self.policy,
            100.0 * hits / queries,
            ttft[ttft.len() / 2],
            ttft[ttft.len() - 1],
            served.join(", ")
        );
    }

    /// Returns how many tokens were cached by what the answers reported.
    pub(crate) fn reported(&self) -> u64 {
        self.finished.iter().filter_map(|it| it.cached_tokens).sum()
    }

    /// Returns how many requests found as much cached as the front end had predicted.
    pub(crate) fn predicted(&self) -> usize {
        self.finished.iter().filter(|it| it.is_as_predicted()).count()
    }
}

/// Asks for one answer; `on_text` sees it arrive.
pub(crate) async fn ask(
    front_end: SocketAddr,
    messages: &[Value],
    max_tokens: u32,
    mut on_text: impl FnMut(),
) -> Result<Heard> {
    let asked = Instant::now();
    let mut first = None;
    let answer = client::chat(front_end, MODEL, messages, max_tokens, |_| {
        first.get_or_insert_with(|| asked.elapsed());
        on_text();
    });
    let answer = timeout(ANSWER_MAX, answer).await.context("an answer does not end")??;
    Ok(Heard { text: answer.text, ttft: first.unwrap_or_else(|| asked.elapsed()) })
}

/// Lets all users take their turns, one after the other: with several at once it is chance who is
/// first at the front end, and so whom round robin brings back to the server of the first turn.
async fn converse(front_end: SocketAddr) -> Result<Vec<Heard>> {
    let mut conversations = Conversation::all();
    let mut answers = Vec::with_capacity(USERS * TURNS);
    for turn in 0..TURNS {
        for user in order(turn) {
            let conversation = &mut conversations[user];
            conversation.ask();
            let heard = ask(front_end, &conversation.messages, TOKENS_MAX, || ()).await?;
            conversation.hear(&heard.text);
            answers.push(heard);
        }
    }
    Ok(answers)
}

/// Returns what both servers have counted.
async fn counted(fleet: &Fleet) -> Result<CacheCount> {
    let mut sum = CacheCount { hits: 0.0, queries: 0.0 };
    for engine in &fleet.engines {
        let CacheCount { hits, queries } = engine.cache_count().await?;
        sum = CacheCount { hits: sum.hits + hits, queries: sum.queries + queries };
    }
    Ok(sum)
}

/// Tokens of an answer: what is shown is what happens before the first.
const TOKENS_MAX: u32 = 16;

const ANSWER_MAX: Duration = Duration::from_secs(180);
