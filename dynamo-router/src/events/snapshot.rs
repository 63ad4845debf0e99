use dynamo_core::protocol::{KvChange, KvCursor, SnapshotPage, SnapshotRequest, WorkerId};
use dynamo_core::{Client, Context, Error, ErrorKind, Result};

use super::config::ResyncConfig;
use super::sequencer::Snapshot;

/// Asks a worker what its caches hold.
pub(super) async fn fetch(
    client: Client<SnapshotRequest, SnapshotPage>,
    request: SnapshotRequest,
    config: ResyncConfig,
) -> Result<Snapshot> {
    let worker = request.worker;
    let answer = async {
        let ctx = Context::new().with_timeout(config.timeout);
        let mut pages = client.direct(worker.instance, ctx, request).await?;
        let mut assembly = Assembly::new(worker, config.blocks_max);
        while let Some(page) = pages.next().await {
            assembly.add(page?)?;
        }
        assembly.finish()
    };
    tokio::time::timeout(config.timeout, answer).await.unwrap_or_else(|_| {
        let message = format!("snapshot of worker {worker}");
        Err(Error::new(ErrorKind::DeadlineExceeded, message))
    })
}

/// Makes a snapshot of its pages; pure.
struct Assembly {
    worker: WorkerId,
    cursor: Option<KvCursor>,
    stored: Vec<KvChange>,
    blocks: usize,
    blocks_max: usize,
}

impl Assembly {
    fn new(worker: WorkerId, blocks_max: usize) -> Self {
        Self { worker, cursor: None, stored: Vec::new(), blocks: 0, blocks_max }
    }

    /// Takes in the next page.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if it is not of the snapshot, and with
    /// [`Overloaded`](ErrorKind::Overloaded) if that becomes too large.
    fn add(&mut self, page: SnapshotPage) -> Result<()> {
        let Self { worker, .. } = *self;
        let wrong = |what| {
            let message = format!("snapshot of worker {worker} {what}");
            Err(Error::new(ErrorKind::Protocol, message))
        };
        if page.worker != worker {
            return wrong(format!("has a page of worker {}", page.worker));
        }
        let first = *self.cursor.get_or_insert(page.cursor);
        if page.cursor != first {
            return wrong(format!("has pages of {first:?} and {:?}", page.cursor));
        }
        for change in &page.stored {
            match change {
                KvChange::BlockStored { blocks, .. } => self.blocks += blocks.len(),
                _ => return wrong("says more than what is stored".to_owned()),
            }
        }
        if self.blocks > self.blocks_max {
            let message =
                format!("snapshot of worker {worker} has more than {} blocks", self.blocks_max);
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        self.stored.extend(page.stored);
        Ok(())
    }

    fn finish(self) -> Result<Snapshot> {
        let worker = self.worker;
        let cursor = self.cursor.ok_or_else(|| {
            let message = format!("snapshot of worker {worker} has no page");
            Error::new(ErrorKind::Protocol, message)
        })?;
        Ok(Snapshot { cursor, stored: self.stored })
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::{InstanceId, LocalHash, SequenceHash, StoredBlock, Tier};

    use super::*;

    fn page(worker: u64, next: u64, hashes: impl IntoIterator<Item = u64>) -> SnapshotPage {
        let block = |hash| StoredBlock { sequence: SequenceHash(hash), local: LocalHash(hash) };
        let blocks = hashes.into_iter().map(block).collect();
        let stored = vec![KvChange::BlockStored { parent: None, blocks, tier: Tier::Host }];
        let (worker, cursor) = (WorkerId::new(InstanceId(worker)), KvCursor { epoch: 1, next });
        SnapshotPage { worker, cursor, stored }
    }

    fn assemble(pages: impl IntoIterator<Item = SnapshotPage>) -> Result<Snapshot> {
        let mut assembly = Assembly::new(WorkerId::new(InstanceId(1)), 4);
        pages.into_iter().try_for_each(|page| assembly.add(page))?;
        assembly.finish()
    }

    #[test]
    fn pages_of_one_moment_are_a_snapshot() {
        let snapshot = assemble([page(1, 7, 0..2), page(1, 7, 2..4)]).unwrap();
        assert_eq!(snapshot.cursor, KvCursor { epoch: 1, next: 7 });
        assert_eq!(snapshot.stored.len(), 2);
    }

    #[test]
    fn what_is_no_snapshot_is_refused_by_name() {
        let cleared = SnapshotPage { stored: vec![KvChange::AllBlocksCleared], ..page(1, 7, 0..1) };
        let cases = [
            (vec![], ErrorKind::Protocol, "has no page"),
            (vec![page(2, 7, 0..1)], ErrorKind::Protocol, "has a page of worker 2.0"),
            (vec![page(1, 7, 0..1), page(1, 8, 0..1)], ErrorKind::Protocol, "has pages of"),
            (vec![cleared], ErrorKind::Protocol, "more than what is stored"),
            (vec![page(1, 7, 0..5)], ErrorKind::Overloaded, "more than 4 blocks"),
        ];
        for (pages, kind, text) in cases {
            let error = assemble(pages).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            let message = error.to_string();
            assert!(message.contains("of worker 1.0") && message.contains(text), "{message}");
        }
    }
}
