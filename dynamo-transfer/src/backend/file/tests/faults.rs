use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::*;

on_each_engine! {
    calls_that_are_cut_anywhere_lose_no_byte
    calls_that_are_interrupted_are_made_again_and_not_for_ever
    a_failed_call_stops_the_operation_and_names_the_place
    a_filesystem_without_direct_io_is_written_through_the_page_cache
    a_durable_write_ends_with_one_sync_and_fails_with_it
    a_dropped_operation_keeps_its_memory_until_the_kernel_is_done
    memory_is_not_touched_after_its_lease
    a_cancelled_operation_ends_when_it_is_quiet
    shutdown_gives_back_what_is_held
    a_store_that_is_dropped_ends_what_it_was_doing
}

async fn calls_that_are_cut_anywhere_lose_no_byte(engine: FileEngine) {
    let scratch = Scratch::new();
    let mut lengths = [1, 4096, 511, 100_000, 8192, 65_536, 3].into_iter().cycle();
    let faults = FileFaults::new(move |_| FileFault::Cut(lengths.next().unwrap()));
    let store = faulty(engine, &faults);
    let file = scratch.region(1 << 20, FileOptions::default());
    let places: Vec<_> = (0..10)
        .map(|i| range(i * 100_000, usize::try_from(9 - i).unwrap() * 50_000, 50_000))
        .collect();
    let source = pattern(9, 500_000);
    let (written, _) = store.write(&file, &places, source.clone()).await;
    assert_eq!(written.unwrap(), 500_000);
    let (read, back) = store.read(&file, &places, HostBuffer::new(500_000)).await;
    assert_eq!(read.unwrap(), 500_000);
    assert!(back.unwrap()[..] == source[..]);
    assert!(faults.calls() > 40, "they were cut");
    shut(store).await;
}

async fn calls_that_are_interrupted_are_made_again_and_not_for_ever(engine: FileEngine) {
    let scratch = Scratch::new();
    let faults = FileFaults::new(|call| match call.index % 3 {
        0 => FileFault::Fail(libc::EINTR),
        1 => FileFault::Fail(libc::EAGAIN),
        _ => FileFault::Pass,
    });
    let store = faulty(engine, &faults);
    let file = scratch.region(4096, FileOptions::default());
    store.write(&file, &[range(0, 0, 4096)], pattern(1, 4096)).await.0.unwrap();
    assert_eq!(faults.calls(), 3);
    shut(store).await;

    let faults = FileFaults::new(|_| FileFault::Fail(libc::EAGAIN));
    let store = faulty(engine, &faults);
    let error = store.read(&file, &[range(0, 0, 4096)], HostBuffer::new(4096)).await.0.unwrap_err();
    assert_eq!((error.kind(), code(&error)), (ErrorKind::Io, Some(libc::EAGAIN)));
    shut(store).await;
}

async fn a_failed_call_stops_the_operation_and_names_the_place(engine: FileEngine) {
    let scratch = Scratch::new();
    let faults = FileFaults::new(|call| match call.offset {
        2_097_152 => FileFault::Fail(libc::EIO),
        _ => FileFault::Pass,
    });
    let store = faulty(engine, &faults);
    let file = scratch.region(64 << 20, FileOptions::default());
    let (result, buffer) =
        store.read(&file, &[range(0, 0, 64 << 20)], HostBuffer::new(64 << 20)).await;
    let error = result.unwrap_err();
    assert_eq!((error.kind(), code(&error)), (ErrorKind::Io, Some(libc::EIO)));
    assert!(error.message().starts_with("reading 1048576 bytes at 2097152 of "), "{error}");
    assert!(faults.calls() < 64, "the rest was not started");
    assert!(buffer.is_some());
    shut(store).await;
}

async fn a_filesystem_without_direct_io_is_written_through_the_page_cache(engine: FileEngine) {
    let scratch = Scratch::new();
    let file = scratch.region(1 << 20, FileOptions::default());
    let had_direct = file.is_direct();
    let faults = FileFaults::new(|call| match call.index {
        0 => FileFault::Fail(libc::EINVAL),
        _ => FileFault::Pass,
    });
    let store = faulty(engine, &faults);
    let result = store.write(&file, &[range(4096, 0, 8192)], pattern(1, 8192)).await.0;
    assert!(!file.is_direct());
    if had_direct {
        assert_eq!(result.unwrap(), 8192);
        assert!(fs::read(scratch.path()).unwrap()[4096..12_288] == pattern(1, 8192)[..]);
    } else {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    shut(store).await;
}

async fn a_durable_write_ends_with_one_sync_and_fails_with_it(engine: FileEngine) {
    let scratch = Scratch::new();
    let (syncs, others) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seen, before) = (Arc::clone(&syncs), Arc::clone(&others));
    let faults = FileFaults::new(move |call| {
        if call.act != FileAct::Sync {
            before.fetch_add(1, Ordering::SeqCst);
            return FileFault::Pass;
        }
        match seen.fetch_add(1, Ordering::SeqCst) {
            0 => FileFault::Pass,
            _ => FileFault::Fail(libc::EIO),
        }
    });
    let store = faulty(engine, &faults);
    let file = scratch.region(40 << 20, FileOptions::default().with_durable(true));
    let write = || store.write(&file, &[range(0, 0, 40 << 20)], pattern(1, 40 << 20));
    assert_eq!(write().await.0.unwrap(), 40 << 20);
    assert_eq!((syncs.load(Ordering::SeqCst), others.load(Ordering::SeqCst)), (1, 40));
    let error = write().await.0.unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.message().starts_with("syncing "), "{error}");
    store.read(&file, &[range(0, 0, 1)], [0; 1]).await.0.unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 2, "reads need none");
    shut(store).await;
}

/// A lease that counts the leases that are dropped.
struct Counted(Arc<AtomicUsize>, #[expect(dead_code, reason = "owns the memory")] HostBuffer);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Posts a read of 20 steps, all of them held.
fn held(
    engine: FileEngine,
    scratch: &Scratch,
) -> (FileStore, FileFaults, FileOperation, Arc<AtomicUsize>) {
    let faults = FileFaults::new(|_| FileFault::Hold);
    let store = faulty(engine, &faults);
    let file = scratch.region(20 << 20, FileOptions::default());
    let mut buffer = HostBuffer::new(20 << 20);
    let chunk = FileChunk { offset: 0, span: Span::of_mut(&mut buffer) };
    let dropped = Arc::new(AtomicUsize::new(0));
    let lease = Box::new(Counted(Arc::clone(&dropped), buffer));
    let operation = store.post(&file, FileAct::Read, [chunk], lease).unwrap();
    assert_eq!((faults.calls(), faults.held()), (8, 8), "8 MiB fly at once");
    (store, faults, operation, dropped)
}

async fn a_dropped_operation_keeps_its_memory_until_the_kernel_is_done(engine: FileEngine) {
    let scratch = Scratch::new();
    let (store, faults, operation, dropped) = held(engine, &scratch);
    drop(operation);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    faults.release();
    shut(store).await;
    assert_eq!((dropped.load(Ordering::SeqCst), faults.calls()), (1, 8), "no step was started");
}

/// A lease that marks its memory when it is dropped, and hands it over.
struct Marked(HostBuffer, std::sync::mpsc::SyncSender<HostBuffer>);

impl Drop for Marked {
    fn drop(&mut self) {
        let mut buffer = std::mem::replace(&mut self.0, HostBuffer::new(0));
        buffer.fill(0xEE);
        self.1.send(buffer).unwrap();
    }
}

async fn memory_is_not_touched_after_its_lease(engine: FileEngine) {
    const OPERATIONS: usize = 24;
    let scratch = Scratch::new();
    let store = store(engine);
    for direct in [true, false] {
        let _ = fs::remove_file(scratch.path());
        let file = scratch.region(4 << 20, FileOptions::default().with_direct(direct));
        let (sender, marked) = std::sync::mpsc::sync_channel(OPERATIONS);
        for number in 0..OPERATIONS {
            let mut buffer = HostBuffer::new(4 << 20);
            let chunk = FileChunk { offset: 0, span: Span::of_mut(&mut buffer) };
            let lease = Box::new(Marked(buffer, sender.clone()));
            let mut operation = store.post(&file, FileAct::Read, [chunk], lease).unwrap();
            if number % 3 == 0 {
                // Some get a little further than others.
                tokio::task::yield_now().await;
                let _ = futures::poll!(&mut operation);
            }
        }
        // The kernel has had the time to write to them.
        let over = store.read(&file, &[range(0, 0, 4 << 20)], HostBuffer::new(4 << 20)).await;
        over.0.unwrap();
        for _ in 0..OPERATIONS {
            let buffer = marked.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 0xEE));
        }
    }
    shut(store).await;
}

async fn a_cancelled_operation_ends_when_it_is_quiet(engine: FileEngine) {
    let scratch = Scratch::new();
    let (store, faults, mut operation, dropped) = held(engine, &scratch);
    operation.cancel();
    assert!(futures::poll!(&mut operation).is_pending());
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    faults.release();
    assert_eq!((&mut operation).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!((dropped.load(Ordering::SeqCst), operation.progress()), (1, 0));
    shut(store).await;
}

async fn shutdown_gives_back_what_is_held(engine: FileEngine) {
    let scratch = Scratch::new();
    let (store, faults, operation, dropped) = held(engine, &scratch);
    shut(store).await;
    assert_eq!((dropped.load(Ordering::SeqCst), faults.held()), (1, 0));
    assert_eq!(operation.await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn a_store_that_is_dropped_ends_what_it_was_doing(engine: FileEngine) {
    let scratch = Scratch::new();
    let (store, _faults, operation, dropped) = held(engine, &scratch);
    drop(store);
    assert_eq!(operation.await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}
