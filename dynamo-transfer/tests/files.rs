//! What a file store costs the process: one test of its own process, since it counts what that has.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use dynamo_transfer::file::{
    FileEngine, FileOptions, FileRange, FileRegion, FileStore, FileStoreConfig,
};
use dynamo_transfer::{ErrorKind, HostBuffer};
use futures::stream::{FuturesUnordered, StreamExt};

const OPERATIONS: u64 = 100_000;
const IN_FLIGHT: u64 = 64;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the threads of stores, and how often each has gone to sleep.
fn file_threads() -> BTreeMap<u32, u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_owned())
        };
        let own = field("Name:")? == "dynamo-file";
        own.then(|| {
            Some((field("Pid:")?.parse().ok()?, field("voluntary_ctxt_switches:")?.parse().ok()?))
        })?
    });
    tasks.collect()
}

fn kernel_threads() -> usize {
    let names = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("iou-wrk")).count()
}

/// Writes or reads `operations` blocks, so many at once.
async fn run(store: &FileStore, file: &FileRegion, operations: u64) {
    let one = |number: u64| {
        let place = FileRange { offset: number % BLOCKS * BLOCK as u64, at: 0, len: BLOCK };
        let (store, file) = (store.clone(), file.clone());
        async move {
            let buffer = HostBuffer::new(BLOCK);
            let (moved, _) = match number % 4 {
                0 => store.write(&file, &[place], buffer).await,
                _ => store.read(&file, &[place], buffer).await,
            };
            assert_eq!(moved.unwrap(), BLOCK as u64);
        }
    };
    let mut flying: FuturesUnordered<_> = (0..IN_FLIGHT).map(one).collect();
    let mut posted = IN_FLIGHT;
    while flying.next().await.is_some() {
        if posted < operations {
            flying.push(one(posted));
            posted += 1;
        }
    }
}

#[tokio::test]
async fn descriptors_and_threads_stay_as_they_are_and_an_idle_store_sleeps() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("flat-{}", std::process::id()));
    let (len, mut ran) = (BLOCKS * BLOCK as u64, 0);
    for (engine, count) in
        [(FileEngine::Ring, 1), (FileEngine::Pool, 3), (FileEngine::RingAndPool, 4)]
    {
        let before = descriptors();
        let config = FileStoreConfig::default().with_engine(engine).with_threads(3);
        let store = match FileStore::start(config) {
            Ok(store) => store,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::BackendUnavailable, "{engine:?}: {error}");
                // Past the capture of passing tests' output.
                let skipped =
                    format!("SKIPPED: {engine:?} needs a kernel that offers it: {error}\n");
                std::io::stderr().write_all(skipped.as_bytes()).unwrap();
                continue;
            }
        };
        ran += 1;
        let options = FileOptions::default().with_direct(false);
        let file = FileRegion::create(&path, len, options).unwrap();
        run(&store, &file, 2 * IN_FLIGHT).await;
        let (warm, threads) = (descriptors(), settled().await);
        run(&store, &file, OPERATIONS).await;
        assert_eq!(descriptors(), warm);
        // The kernel's own for buffered writes.
        assert!(kernel_threads() <= 3);

        // The last completion was seen: from here on there is nothing to wake up for.
        let asleep = settled().await;
        assert!(asleep.keys().eq(threads.keys()));
        assert_eq!(threads.len(), count);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(file_threads(), asleep, "nobody looks at the clock");

        store.shutdown(Duration::from_secs(20)).await.unwrap();
        assert!(file_threads().is_empty());
        drop((store, file));
        fs::remove_file(&path).unwrap();
        assert_eq!(descriptors(), before);
    }
    assert!(ran > 0, "no engine ran");
}

/// Waits until the threads sleep: until their counts stay the same for a moment. Threads of the
/// kernel bear the name of the one that they work for until they first run.
async fn settled() -> BTreeMap<u32, u64> {
    for _ in 0..500 {
        let before = file_threads();
        tokio::time::sleep(Duration::from_millis(20)).await;
        if file_threads() == before {
            return before;
        }
    }
    unreachable!("the threads do not come to rest")
}
