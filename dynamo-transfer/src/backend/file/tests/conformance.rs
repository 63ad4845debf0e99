use std::io::Write;
use std::process::Command;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;

on_each_engine! {
    random_chunks_move_as_in_a_vector
    buffers_are_moved_to_their_places_at_once_and_come_back_in_order
    an_empty_operation_moves_nothing
    ranges_outside_and_double_writes_are_refused_and_the_buffer_comes_back
    a_file_that_is_cut_short_is_an_error_that_says_where
    a_full_disk_is_told_from_a_broken_one
    what_cannot_be_opened_or_written_says_why
    a_deleted_file_can_be_read_and_no_longer_written
    an_operation_beyond_the_limit_is_refused
    shutdown_ends_what_is_in_flight_and_refuses_what_comes
}

fn below(random: &mut TestRng, limit: u64) -> u64 {
    random.next_u64() % limit
}

/// Cuts the file into areas, some of which become ranges of a buffer of `len` bytes, shuffled.
fn ranges(random: &mut TestRng, file_len: u64, len: usize) -> Vec<FileRange> {
    let (mut offset, mut at, mut all) = (0, 0, Vec::new());
    let unit = [1, 512, 4096][usize::try_from(below(random, 3)).unwrap()];
    loop {
        offset += below(random, 20) * unit;
        at += usize::try_from(below(random, 3) * unit).unwrap();
        let size = usize::try_from((1 + below(random, 60)) * unit).unwrap();
        if offset + size as u64 > file_len || at + size > len {
            break;
        }
        all.push(range(offset, at, size));
        (offset, at) = (offset + size as u64, at + size);
    }
    for index in 1..all.len() {
        let other = usize::try_from(below(random, index as u64 + 1)).unwrap();
        let (one, two) = (all[index].offset, all[other].offset);
        if all[index].len == all[other].len {
            (all[index].offset, all[other].offset) = (two, one);
        }
        all.swap(index, other);
    }
    all
}

async fn random_chunks_move_as_in_a_vector(engine: FileEngine) {
    const LEN: usize = (1 << 20) + 777;
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    for direct in [true, false] {
        let (store, scratch) = (store(engine), Scratch::new());
        assert_eq!(store.engine(), engine);
        let file = scratch.region(LEN as u64, FileOptions::default().with_direct(direct));
        let mut oracle = vec![0; LEN];
        for round in 0..30 {
            let (source, list) = (pattern(round, LEN), ranges(&mut random, LEN as u64, LEN));
            let total: usize = list.iter().map(|range| range.len).sum();
            let place = |range: &FileRange| usize::try_from(range.offset).unwrap();
            if round % 2 == 0 {
                for range in &list {
                    oracle[place(range)..][..range.len]
                        .copy_from_slice(&source[range.at..][..range.len]);
                }
                let (moved, _) = store.write(&file, &list, source).await;
                assert_eq!(moved.unwrap(), total as u64);
            } else {
                let mut expected = source.to_vec();
                for range in &list {
                    expected[range.at..][..range.len]
                        .copy_from_slice(&oracle[place(range)..][..range.len]);
                }
                let (moved, read) = store.read(&file, &list, source).await;
                assert_eq!(moved.unwrap(), total as u64);
                assert!(read.unwrap()[..] == expected[..], "bytes outside stay as they were");
            }
        }
        assert!(fs::read(scratch.path()).unwrap() == oracle);
        shut(store).await;
    }
}

async fn buffers_are_moved_to_their_places_at_once_and_come_back_in_order(engine: FileEngine) {
    let (store, scratch) = (store(engine), Scratch::new());
    let file = scratch.region(64 << 10, FileOptions::default());
    // Neighbours in the file, out of order, and one that stands alone and is not of whole pages.
    let places = [(8192, 4096), (4096, 4096), (30_000, 100), (12_288, 8192)];
    let parts = |fill: fn(u8, usize) -> HostBuffer| {
        let parts = (0u8..).zip(places).map(|(number, (at, len))| (at, fill(number, len)));
        parts.collect::<Vec<_>>()
    };
    let (moved, back) = store.write_all(&file, parts(pattern)).await;
    assert_eq!((moved.unwrap(), back.unwrap().len()), (16_484, places.len()));
    let (moved, back) = store.read_all(&file, parts(|_, len| HostBuffer::new(len))).await;
    assert_eq!(moved.unwrap(), 16_484);
    for ((number, (at, len)), buffer) in (0u8..).zip(places).zip(back.unwrap()) {
        assert!(buffer[..] == pattern(number, len)[..], "{len} bytes at {at}");
    }
    let outside = vec![(0, HostBuffer::new(8)), (64 << 10, HostBuffer::new(8))];
    let (refused, back) = store.read_all(&file, outside).await;
    assert_eq!((refused.unwrap_err().kind(), back.unwrap().len()), (ErrorKind::OutOfBounds, 2));
    assert_eq!(store.write_all(&file, Vec::<(u64, HostBuffer)>::new()).await.0.unwrap(), 0);
    shut(store).await;
}

async fn an_empty_operation_moves_nothing(engine: FileEngine) {
    let (store, scratch) = (store(engine), Scratch::new());
    let file = scratch.region(4096, FileOptions::default().with_durable(true));
    assert_eq!(store.write(&file, &[], [0; 0]).await.0.unwrap(), 0);
    assert_eq!(store.read(&file, &[range(4096, 0, 0)], [0; 0]).await.0.unwrap(), 0);
    shut(store).await;
}

async fn ranges_outside_and_double_writes_are_refused_and_the_buffer_comes_back(
    engine: FileEngine,
) {
    let (store, scratch) = (store(engine), Scratch::new());
    let file = scratch.region(100, FileOptions::default());
    for bad in [range(93, 0, 8), range(u64::MAX, 0, 8), range(0, 1, 8), range(0, usize::MAX, 8)] {
        assert_eq!(
            kind(store.read(&file, &[range(0, 0, 1), bad], [0; 8]).await),
            ErrorKind::OutOfBounds
        );
        assert_eq!(kind(store.write(&file, &[bad], [0; 8]).await), ErrorKind::OutOfBounds);
    }
    let twice = [range(0, 0, 5), range(4, 3, 5)];
    assert_eq!(kind(store.write(&file, &twice, [1; 8]).await), ErrorKind::InvalidArgument);
    assert!(fs::read(scratch.path()).unwrap().iter().all(|byte| *byte == 0));
    shut(store).await;
}

async fn a_file_that_is_cut_short_is_an_error_that_says_where(engine: FileEngine) {
    for direct in [true, false] {
        let (store, scratch) = (store(engine), Scratch::new());
        let file = scratch.region(1 << 20, FileOptions::default().with_direct(direct));
        fs::OpenOptions::new().write(true).open(scratch.path()).unwrap().set_len(10_000).unwrap();
        let (result, _) = store.read(&file, &[range(0, 0, 65_536)], HostBuffer::new(65_536)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().contains("reading 55536 bytes at 10000 of"), "{error}");
        assert!(error.message().contains(scratch.path().to_str().unwrap()), "{error}");
        shut(store).await;
    }
}

/// A filesystem of a megabyte; `None` if this process may not mount.
struct Small(Scratch);

impl Small {
    fn mount() -> Option<Self> {
        let scratch = Scratch::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&scratch.0)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            let skipped = "SKIPPED: a full filesystem; run the tests as root\n";
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return None;
        }
        Some(Self(scratch))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The last descriptor is closed a moment after the operation has ended, hence lazily.
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

async fn a_full_disk_is_told_from_a_broken_one(engine: FileEngine) {
    let store = store(engine);
    let full = FileRegion::open("/dev/full", 1 << 20, FileOptions::default()).unwrap();
    let (result, buffer) = store.write(&full, &[range(4096, 0, 8)], [1; 8]).await;
    let error = result.unwrap_err();
    assert_eq!((error.kind(), buffer), (ErrorKind::StorageFull, Some([1; 8])));
    assert_eq!(error.message(), "writing 8 bytes at 4096 of /dev/full");
    if let Some(small) = Small::mount() {
        let path = small.0.path();
        let error = FileRegion::create(&path, 2 << 20, FileOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(!path.exists(), "nothing is left behind");
        // A file with holes promises more than there is.
        fs::File::create(&path).unwrap().set_len(2 << 20).unwrap();
        let file = FileRegion::open(&path, 2 << 20, FileOptions::default()).unwrap();
        let (result, _) = store.write(&file, &[range(0, 0, 2 << 20)], pattern(1, 2 << 20)).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert!(code(&error) == Some(libc::ENOSPC) && !error.is_retryable());
    }
    shut(store).await;
}

async fn what_cannot_be_opened_or_written_says_why(engine: FileEngine) {
    let (store, scratch, options) = (store(engine), Scratch::new(), FileOptions::default());
    let refused = |path: PathBuf, len| FileRegion::open(path, len, options).unwrap_err().kind();
    assert_eq!(refused(scratch.path(), 1), ErrorKind::NotFound);
    assert_eq!(refused(scratch.0.clone(), 1), ErrorKind::InvalidArgument);
    let file = scratch.region(10, options);
    assert_eq!(file.len(), 10);
    for len in [0, 11, u64::MAX] {
        assert_eq!(refused(scratch.path(), len), ErrorKind::InvalidArgument);
    }
    let again = FileRegion::create(scratch.path(), 10, options).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidArgument);
    assert!(scratch.path().exists(), "what was there before stays");

    let file = FileRegion::open(scratch.path(), 10, options.with_writable(false)).unwrap();
    assert_eq!(
        kind(store.write(&file, &[range(0, 0, 4)], [1; 4]).await),
        ErrorKind::PermissionDenied
    );
    assert_eq!(store.read(&file, &[range(0, 0, 4)], [1; 4]).await.1, Some([0; 4]));
    shut(store).await;
}

async fn a_deleted_file_can_be_read_and_no_longer_written(engine: FileEngine) {
    let (store, scratch) = (store(engine), Scratch::new());
    let file = scratch.region(4096, FileOptions::default());
    store.write(&file, &[range(0, 0, 4096)], pattern(3, 4096)).await.0.unwrap();
    fs::remove_file(scratch.path()).unwrap();
    let (read, buffer) = store.read(&file, &[range(0, 0, 4096)], HostBuffer::new(4096)).await;
    assert_eq!(read.unwrap(), 4096);
    assert!(buffer.unwrap()[..] == pattern(3, 4096)[..]);
    assert_eq!(kind(store.write(&file, &[range(0, 0, 1)], [0; 1]).await), ErrorKind::NotFound);
    shut(store).await;
}

async fn an_operation_beyond_the_limit_is_refused(engine: FileEngine) {
    let scratch = Scratch::new();
    let file = scratch.region(4096, FileOptions::default());
    let faults = FileFaults::new(|_| FileFault::Hold);
    let config = FileStoreConfig::default().with_engine(engine).with_faults(faults.clone());
    let store = FileStore::start(config.with_operations_max(2)).unwrap();
    let read = || store.read(&file, &[range(0, 0, 1)], [0; 1]);
    let (one, two) = (read(), read());
    assert_eq!(kind(read().await), ErrorKind::Overloaded);
    faults.release();
    assert!(one.await.0.is_ok() && two.await.0.is_ok());
    let three = read();
    faults.release();
    assert!(three.await.0.is_ok(), "there is room again");
    shut(store).await;
}

async fn shutdown_ends_what_is_in_flight_and_refuses_what_comes(engine: FileEngine) {
    let (store, scratch) = (store(engine), Scratch::new());
    let file = scratch.region(64 << 20, FileOptions::default());
    let write =
        |number: u64| store.write(&file, &[range(number << 22, 0, 4 << 20)], pattern(1, 4 << 20));
    let writes: Vec<_> = (0..16).map(write).collect();
    store.shutdown(Duration::from_secs(20)).await.unwrap();
    for write in writes {
        let (result, buffer) = write.await;
        assert!(buffer.is_some());
        assert!(
            result.as_ref().is_ok_and(|moved| *moved == 4 << 20)
                || result.is_err_and(|error| error.kind() == ErrorKind::Closed)
        );
    }
    assert_eq!(kind(write(0).await), ErrorKind::Closed);
    store.shutdown(Duration::from_secs(20)).await.unwrap();
}
