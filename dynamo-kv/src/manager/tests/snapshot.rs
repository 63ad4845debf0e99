use dynamo_core::protocol::{KvCursor, SnapshotPage, SnapshotRequest};
use dynamo_core::{Context, Engine, ErrorKind, Result};

use super::*;

async fn ask(
    engine: &SnapshotEngine,
    worker: u64,
    known: Option<KvCursor>,
) -> Result<Vec<SnapshotPage>> {
    let request = SnapshotRequest { worker: WorkerId::new(InstanceId(worker)), known };
    engine.generate(Context::new(), request).await?.collect().await
}

#[tokio::test]
async fn the_engine_answers_with_what_the_events_said_or_that_nothing_was_said_since() {
    let (manager, events) = manager(CAPACITY);
    let engine = SnapshotEngine::new([manager.clone()]);
    for path in [0, 1, 6] {
        drop(store(&manager, sequence(path).keys()).unwrap());
    }
    let pages = ask(&engine, 1, None).await.unwrap();
    let cursor = KvCursor { epoch: 1, next: events.lock().unwrap().len() as u64 };
    assert!(pages.iter().all(|page| page.cursor == cursor), "{pages:?}");
    let changes = pages.into_iter().flat_map(|page| page.stored).zip(0..);
    let worker = WorkerId::new(InstanceId(1));
    let as_events: Vec<_> =
        changes.map(|(change, seq)| KvEvent { worker, epoch: 1, seq, change }).collect();
    assert_eq!(replay(&as_events), replay(&events.lock().unwrap()));

    let nothing = [SnapshotPage { worker, cursor, stored: Vec::new() }];
    assert_eq!(ask(&engine, 1, Some(cursor)).await.unwrap(), nothing);
    let stale = KvCursor { next: 0, ..cursor };
    assert!(!ask(&engine, 1, Some(stale)).await.unwrap()[0].stored.is_empty());
    let error = ask(&engine, 2, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn so_many_snapshots_are_under_way_and_one_that_is_read_makes_room() {
    let (manager, _) = manager(CAPACITY);
    let engine = SnapshotEngine::new([manager]);
    let request = SnapshotRequest { worker: WorkerId::new(InstanceId(1)), known: None };
    let mut unread = Vec::new();
    let refused = loop {
        match engine.generate(Context::new(), request).await {
            Ok(stream) => unread.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!((unread.len(), refused.kind()), (4, ErrorKind::Overloaded));
    assert_eq!(unread.remove(0).collect().await.unwrap().len(), 1);
    drop(engine.generate(Context::new(), request).await.unwrap());
}
