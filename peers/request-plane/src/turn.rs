//! One turn of one contender, and what is measured in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::model::{Ask, Model};

/// One way to a server that answers with one-token items.
pub trait Subject: Send + Sync {
    /// Asks, tells the model of every token that comes, and returns how many came.
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<u32>>;
}

/// What is done in a turn: `callers` tasks make `calls` calls in all, each for `tokens` tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Turn {
    pub callers: u32,
    pub calls: u32,
    pub tokens: u32,
    pub stepped: bool,
}

/// What a turn took; or the medians of several.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Measured {
    /// Of the time of a call, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Tokens per second.
    pub rate: f64,
    /// Processor microseconds per token, of client and server.
    pub cpu: f64,
    /// Bytes and packets per token on the loopback, with all headers and acknowledgements.
    pub bytes: f64,
    pub packets: f64,
}

impl Measured {
    /// Returns the median of every figure.
    pub fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            p50: of(|m| m.p50),
            p99: of(|m| m.p99),
            rate: of(|m| m.rate),
            cpu: of(|m| m.cpu),
            bytes: of(|m| m.bytes),
            packets: of(|m| m.packets),
        }
    }
}

/// Lets `subject` have its turn.
pub async fn run(subject: &Arc<dyn Subject>, model: &Model, turn: Turn) -> Result<Measured> {
    ensure!(!turn.stepped || turn.calls == turn.callers, "a batch is one call of each caller");
    model.begin(turn.callers);
    let left = Arc::new(AtomicU32::new(turn.calls));
    let (before, started) = (Usage::now()?, Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..turn.callers {
        callers.spawn(call(Arc::clone(subject), Arc::clone(&left), turn));
    }
    let mut times = Vec::with_capacity(turn.calls as usize);
    let all = async {
        while let Some(own) = callers.join_next().await {
            times.extend(own??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(TURN_MAX, all).await.context("a turn does not end")??;
    let (took, used) = (started.elapsed(), Usage::now()?);
    times.sort_by(f64::total_cmp);
    let tokens = f64::from(turn.calls) * f64::from(turn.tokens);
    Ok(Measured {
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
        rate: tokens / took.as_secs_f64(),
        cpu: (used.cpu - before.cpu).as_secs_f64() * 1e6 / tokens,
        bytes: (used.bytes - before.bytes) as f64 / tokens,
        packets: (used.packets - before.packets) as f64 / tokens,
    })
}

/// Calls while calls are left; returns the microseconds of each.
async fn call(subject: Arc<dyn Subject>, left: Arc<AtomicU32>, turn: Turn) -> Result<Vec<f64>> {
    let ask = Ask { count: turn.tokens, stepped: turn.stepped };
    let mut times = Vec::new();
    let another = |left: u32| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, another).is_ok() {
        let started = Instant::now();
        ensure!(subject.ask(ask).await? == turn.tokens, "an answer is not whole");
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// What has been used so far.
struct Usage {
    cpu: Duration,
    bytes: u64,
    packets: u64,
}

impl Usage {
    fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        let devices = std::fs::read_to_string("/proc/self/net/dev")?;
        let loopback = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
        let mut sent = loopback.unwrap_or_default().split_whitespace();
        let mut figure = || sent.next().and_then(|figure| figure.parse().ok()).unwrap_or(0);
        // Linux counts processor time in hundredths of a second.
        Ok(Self { cpu: Duration::from_millis(ticks * 10), bytes: figure(), packets: figure() })
    }
}

/// A turn that takes longer has failed.
pub const TURN_MAX: Duration = Duration::from_secs(120);
