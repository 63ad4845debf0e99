//! What a cell asks its server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dynamo_core::wire::session::Limits;

use super::{Cell, PHASE_MAX, Phase, Stream};

/// What a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) tasks: usize,
    pub(super) files: usize,
}

impl Cell<'_> {
    pub(super) async fn left(&mut self) -> Result<Left> {
        let line = self.server.ask("left").await?;
        let counts: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [running, waiting, tasks, files] = counts[..] else { anyhow::bail!("{line:?}") };
        Ok(Left { running, waiting, tasks, files })
    }

    /// Sees that the server comes to have what it had before, and nothing more.
    pub(super) async fn settles(&mut self, before: Left) -> Result<()> {
        let (within, mut left) = (self.within, before);
        let settles = async {
            if self.phase == Phase::Draining {
                let report = self.server.ask("drained").await?;
                ensure!(report == "1 0", "the drain says {report:?}");
            }
            loop {
                left = self.left().await?;
                if left == before {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let settled = tokio::time::timeout(within, settles).await;
        settled.with_context(|| format!("{before:?} is {left:?} after {within:?}"))?
    }

    /// Does not read until it is too late, and sees that the engine was held back meanwhile.
    pub(super) async fn is_held(&mut self, stream: &Stream) -> Result<()> {
        let deadline = stream.context().deadline().context("a slow reader has a deadline")?;
        tokio::time::sleep_until(deadline.into()).await;
        let flooded: usize = self.server.ask("flooded").await?.parse()?;
        let window = usize::try_from(Limits::default().stream_window)?;
        let held_at = (window + QUEUED_BYTES_MAX) / ITEM_BYTES_MIN + BURST_ITEMS_MAX;
        ensure!(flooded > BURST_ITEMS_MAX, "no flood: {flooded} items");
        ensure!(flooded <= held_at, "{flooded} items that nobody reads, more than {held_at}");
        Ok(())
    }

    pub(super) async fn until(&mut self, holds: impl Fn(&Left) -> bool) -> Result<()> {
        let waits = async {
            while !holds(&self.left().await?) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        tokio::time::timeout(PHASE_MAX, waits).await.context("the phase is not reached")?
    }

    /// Waits until the engine has been asked so often.
    pub(super) async fn until_started(&mut self, count: usize) -> Result<()> {
        let waits = async {
            while self.server.ask("started").await?.parse::<usize>()? < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        tokio::time::timeout(PHASE_MAX, waits).await.context("the engine is not asked")?
    }
}

/// What a session queues of a stream, besides what the peer's window takes.
const QUEUED_BYTES_MAX: usize = 64 << 10;
/// What an item of a flood takes at least.
const ITEM_BYTES_MIN: usize = 5;
/// Items that the plane asks an engine for at once, on top of a queue that has room: what is
/// at hand, being sent, and the small first one.
const BURST_ITEMS_MAX: usize = 100;
