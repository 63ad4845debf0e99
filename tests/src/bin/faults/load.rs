//! Steady load, and what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use dynamo_core::engine::layers::{Migrate, MigratePolicy};
use dynamo_core::{Context, Engine};
use dynamo_tests::tokens::{self, Checker, Wrong};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fleet::{self, Fleet};
use crate::observed::{Log, Observed};

/// Streams that are kept going.
pub(crate) struct Load {
    engine: Arc<Migrate<Observed>>,
    log: Log,
    seed: Arc<AtomicU32>,
}

/// What came of the answers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answers: u64,
    pub(crate) lost: u64,
    pub(crate) hung: u64,
    pub(crate) wrong: Wrong,
    /// The longest wait for a token in each answer that was moved.
    pub(crate) gaps_ms: Vec<f64>,
}

impl Load {
    pub(crate) async fn new(fleet: &Fleet) -> Result<Self> {
        let client = fleet::endpoint(fleet.runtime())?.client().await?;
        client.wait_for(fleet::WORKERS, Duration::from_secs(20)).await?;
        let log = Log::default();
        let observed = Observed { client, log: log.clone() };
        let engine = Arc::new(Migrate::new(observed, MigratePolicy::default()));
        Ok(Self { engine, log, seed: Arc::default() })
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Keeps streams going while `work` is done, and a little before and behind it.
    pub(crate) async fn during<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<(Tally, T)> {
        let ends = Arc::<AtomicBool>::default();
        let mut callers = JoinSet::new();
        for _ in 0..STREAMS {
            let (engine, log) = (Arc::clone(&self.engine), self.log.clone());
            let (seed, ends) = (Arc::clone(&self.seed), Arc::clone(&ends));
            callers.spawn(async move {
                let mut tally = Tally::default();
                while !ends.load(Ordering::Relaxed) {
                    let seed = seed.fetch_add(1, Ordering::Relaxed);
                    Box::pin(call(&engine, &log, seed, &mut tally)).await;
                }
                tally
            });
        }
        tokio::time::sleep(MARGIN).await;
        let done = work.await;
        tokio::time::sleep(MARGIN).await;
        ends.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for tally in callers.join_all().await {
            total.add(tally);
        }
        ensure!(total.answers > 0, "there was no load");
        Ok((total, done?))
    }
}

async fn call(engine: &Migrate<Observed>, log: &Log, seed: u32, tally: &mut Tally) {
    let ctx = Context::new();
    let id = ctx.id().clone();
    let mut checker = Checker::new(seed, TOKENS);
    let mut gap = Duration::ZERO;
    let answer = async {
        let mut last = Instant::now();
        let mut stream = engine.generate(ctx, tokens::request(seed, TOKENS)).await?;
        while let Some(chunk) = stream.next().await {
            checker.take(&chunk?);
            let now = Instant::now();
            gap = gap.max(now - last);
            last = now;
        }
        dynamo_core::Result::<()>::Ok(())
    };
    tally.answers += 1;
    match tokio::time::timeout(HUNG, answer).await {
        Ok(Ok(())) => {
            let wrong = checker.finish();
            if wrong != Wrong::default() {
                println!("  wrong: {wrong:?}");
            }
            tally.wrong.duplicate += wrong.duplicate;
            tally.wrong.missing += wrong.missing;
            tally.wrong.other += wrong.other;
        }
        Ok(Err(error)) => {
            println!("  lost: {error} {:?}", std::error::Error::source(&error));
            tally.lost += 1;
        }
        Err(_) => {
            println!("  hung");
            tally.hung += 1;
        }
    }
    if log.take_touched(&id) {
        tally.gaps_ms.push(gap.as_secs_f64() * 1e3);
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.lost += other.lost;
        self.hung += other.hung;
        self.wrong.duplicate += other.wrong.duplicate;
        self.wrong.missing += other.wrong.missing;
        self.wrong.other += other.wrong.other;
        self.gaps_ms.extend(other.gaps_ms);
    }
}

const STREAMS: usize = 32;
const TOKENS: u32 = 50;
const MARGIN: Duration = Duration::from_millis(500);

/// An answer takes a quarter of a second, and a frozen worker is noticed after three.
const HUNG: Duration = Duration::from_secs(20);
