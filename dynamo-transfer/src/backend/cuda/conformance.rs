#![expect(unsafe_code, reason = "some copies are posted as a region would post them")]
//! The suite that every device passes.

mod pieces;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::device::{Copies, Direction, SpanCopy};
use super::{BlockCopy, DeviceBuffer, DeviceCopier, PinnedBuffer};
use crate::error::ErrorKind;
use crate::memory::Span;

/// Runs the whole suite, which takes up to 256 MiB of memory; `seed` makes its blocks.
///
/// # Panics
/// If the contract is broken.
pub async fn run(copier: &DeviceCopier, seed: u64) {
    memory_is_zeroed_and_of_its_size(copier).await;
    random_blocks_are_exact(copier, seed).await;
    every_length_and_alignment_is_exact(copier).await;
    pageable_memory_is_copied_too(copier, seed).await;
    pieces::pieces_that_many_own_are_exact(copier, seed).await;
    pieces::a_piece_outside_its_buffer_is_refused_and_given_up(copier).await;
    copies_of_one_direction_run_in_order(copier).await;
    who_waits_for_a_copy_finds_its_bytes(copier, seed).await;
    dropped_copies_keep_their_memory_until_they_have_passed(copier, seed).await;
    what_cannot_be_is_refused(copier).await;
    what_there_is_no_room_for_is_refused(copier);
    ten_thousand_allocations_leave_nothing(copier);
}

/// Checks what two processes on one device share: `exporter` and `importer` stand for them.
///
/// # Panics
/// If the contract is broken.
pub async fn share(exporter: &DeviceCopier, importer: &DeviceCopier) {
    let buffer = exporter.allocate(4 << 20).expect("allocates");
    let bytes = Random(1).bytes(4 << 20);
    buffer.copy_from(exporter, 0, &bytes).await.expect("writes");
    let handle = buffer.export().expect("exports");
    assert_eq!(handle.len(), 4 << 20);
    let refused = exporter.open(&handle).expect_err("the memory is its own");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let mut lying = handle.clone();
    lying.len += 1;
    let refused = importer.open(&lying).expect_err("there is less");
    assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
    let mut other = handle.clone();
    other.device[0] ^= 1;
    let refused = importer.open(&other).expect_err("there is no such device");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);

    let opened = importer.open(&handle).expect("opens");
    assert_eq!(opened.copy_to(importer, 0, 4 << 20).await.expect("reads"), bytes);
    opened.copy_from(importer, 12_345, b"written by another").await.expect("writes");
    let read = buffer.copy_to(exporter, 12_345, 18).await.expect("reads");
    assert_eq!(read, b"written by another");
    let refused = opened.export().expect_err("it belongs to another");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    drop(opened);
    drop(buffer);
    let refused = importer.open(&handle).expect_err("the memory is gone");
    assert_eq!(refused.kind(), ErrorKind::StaleRegion);
}

async fn memory_is_zeroed_and_of_its_size(copier: &DeviceCopier) {
    for len in [0, 1, 255, 4096, (1 << 20) + 1] {
        let buffer = copier.allocate(len).expect("allocates");
        assert_eq!((buffer.len(), buffer.is_empty()), (len, len == 0));
        assert_eq!(buffer.copy_to(copier, 0, len).await.expect("reads"), vec![0; len]);
        // What is given back comes again, and has been cleared.
        buffer.copy_from(copier, 0, &vec![0xA5; len]).await.expect("writes");
        let pinned = copier.allocate_pinned(len).expect("allocates");
        assert!(pinned.len() == len && pinned.iter().all(|&byte| byte == 0));
    }
}

async fn random_blocks_are_exact(copier: &DeviceCopier, seed: u64) {
    let mut random = Random(seed);
    for round in 0..4 {
        // One block after the other on the way there, another order and other gaps on the device.
        let lens: Vec<usize> = (0..200).map(|_| random.len(16, 512 << 10)).collect();
        let total: usize = lens.iter().sum();
        let room = total + 200 * 64;
        let source = random.pinned(copier, total);
        let first = copier.allocate(room).expect("allocates");
        let second = copier.allocate(room).expect("allocates");
        let up = random.scatter(&lens);
        copier.upload(&source, &first, &up).await.expect("uploads");
        let to_second = random.scatter(&lens);
        let pairs = up.iter().zip(&to_second);
        let across: Vec<_> = pairs.map(|(on, to)| BlockCopy { source: on.target, ..*to }).collect();
        copier.copy(&first, &second, &across).await.expect("copies");
        let mut expected = vec![0; room];
        for block in &to_second {
            expected[block.target..block.target + block.len]
                .copy_from_slice(&source[block.source..block.source + block.len]);
        }
        // All of it, so that nothing was written between the blocks.
        let target = copier.allocate_pinned(room).expect("allocates");
        let all = BlockCopy { source: 0, target: 0, len: room };
        let target = copier.download(&second, target, &[all]).await.expect("downloads");
        assert!(target[..] == expected[..], "round {round}, seed {seed}");
        // And block by block, back to where each came from.
        let back = |block: &BlockCopy| BlockCopy {
            source: block.target,
            target: block.source,
            len: block.len,
        };
        let down: Vec<_> = to_second.iter().map(back).collect();
        let target = copier.allocate_pinned(total).expect("allocates");
        let target = copier.download(&second, target, &down).await.expect("downloads");
        assert!(target[..] == source[..], "round {round}, seed {seed}");
    }
}

/// Each alignment of both sides to one another, with each remainder: what a kernel has cases for.
async fn every_length_and_alignment_is_exact(copier: &DeviceCopier) {
    const ROOM: usize = 512;
    let mut blocks = Vec::new();
    for from in 0..16 {
        for to in 0..16 {
            for len in [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 100, 255, 257] {
                let at = blocks.len() * ROOM;
                blocks.push(BlockCopy { source: at + from, target: at + to + 16, len });
            }
        }
    }
    let room = blocks.len() * ROOM;
    let source = Random(7).pinned(copier, room);
    let mut expected = vec![0; room];
    for block in &blocks {
        expected[block.target..block.target + block.len]
            .copy_from_slice(&source[block.source..block.source + block.len]);
    }
    let all = BlockCopy { source: 0, target: 0, len: room };
    let device = copier.allocate(room).expect("allocates");
    copier.upload(&source, &device, &blocks).await.expect("uploads");
    let pinned = || copier.allocate_pinned(room).expect("allocates");
    let target = copier.download(&device, pinned(), &[all]).await.expect("downloads");
    assert!(target[..] == expected[..], "to the device");
    let first = copier.allocate(room).expect("allocates");
    let second = copier.allocate(room).expect("allocates");
    copier.upload(&source, &first, &[all]).await.expect("uploads");
    copier.copy(&first, &second, &blocks).await.expect("copies");
    let target = copier.download(&second, target, &[all]).await.expect("downloads");
    assert!(target[..] == expected[..], "on the device");
    let target = copier.download(&first, pinned(), &blocks).await.expect("downloads");
    assert!(target[..] == expected[..], "from the device");
}

async fn pageable_memory_is_copied_too(copier: &DeviceCopier, seed: u64) {
    const LEN: usize = 3 << 20;
    let source = Random(seed).bytes(LEN);
    let device = copier.allocate(LEN).expect("allocates");
    let pair = |source, target| vec![SpanCopy { source, target }];
    let leases = (source.clone(), Arc::clone(device.memory()));
    let up = Copies {
        direction: Direction::HostToDevice,
        method: None,
        is_pinned: false,
        list: pair(Span::of(&leases.0), device.memory().span()),
    };
    // SAFETY: the leases keep the device's memory and a vector of their own, that nobody touches.
    let leases = unsafe { copier.start(up, leases) }.await.expect("uploads");
    drop(leases);
    let mut target = vec![0; LEN];
    let down = Copies {
        direction: Direction::DeviceToHost,
        method: None,
        is_pinned: false,
        list: pair(device.memory().span(), Span::of_mut(&mut target)),
    };
    let leases = (target, Arc::clone(device.memory()));
    // SAFETY: as above; the bytes of a vector stay where they are when it is moved.
    let (target, _) = unsafe { copier.start(down, leases) }.await.expect("downloads");
    assert!(target == source);
}

async fn copies_of_one_direction_run_in_order(copier: &DeviceCopier) {
    const LEN: usize = 256 << 10;
    let device = copier.allocate(LEN).expect("allocates");
    let block = [BlockCopy { source: 0, target: 0, len: LEN }];
    let sources: Vec<_> = (1..=8u8)
        .map(|value| {
            let mut source = copier.allocate_pinned(LEN).expect("allocates");
            source.fill(value);
            Arc::new(source)
        })
        .collect();
    let mut last = 0;
    for round in 0..50 {
        let posted: Vec<_> = (0..8)
            .map(|at| copier.upload(&sources[(round * 3 + at * 5) % 8], &device, &block))
            .collect();
        for copy in posted {
            copy.await.expect("uploads");
        }
        last = sources[(round * 3 + 7 * 5) % 8][0];
        if round % 10 == 0 {
            assert_eq!(device.copy_to(copier, 0, LEN).await.expect("reads"), vec![last; LEN]);
        }
    }
    assert_eq!(device.copy_to(copier, 0, LEN).await.expect("reads"), vec![last; LEN]);
}

async fn who_waits_for_a_copy_finds_its_bytes(copier: &DeviceCopier, seed: u64) {
    const LEN: usize = 8 << 20;
    let mut random = Random(seed ^ 0xBEEF);
    let device = copier.allocate(LEN).expect("allocates");
    let block = [BlockCopy { source: 0, target: 0, len: LEN }];
    let mut target = copier.allocate_pinned(LEN).expect("allocates");
    for _ in 0..5 {
        let source = random.pinned(copier, LEN);
        // Directions are not ordered among each other: only the waiting makes this right.
        copier.upload(&source, &device, &block).await.expect("uploads");
        target = copier.download(&device, target, &block).await.expect("downloads");
        assert!(target[..] == source[..]);
        target.fill(0);
    }
}

async fn dropped_copies_keep_their_memory_until_they_have_passed(copier: &DeviceCopier, seed: u64) {
    const LEN: usize = 1 << 20;
    let mut random = Random(seed ^ 0xD0);
    let source = random.pinned(copier, LEN);
    let device = copier.allocate(LEN).expect("allocates");
    let block = [BlockCopy { source: 0, target: 0, len: LEN }];
    copier.upload(&source, &device, &block).await.expect("uploads");
    let mut gone = Vec::new();
    for round in 0..64 {
        // Both memories belong to the copy alone, and the future is dropped at once or a little later.
        let own = copier.allocate(LEN).expect("allocates");
        let mut target = copier.allocate_pinned(LEN).expect("allocates");
        let (watch, watched) = oneshot::channel();
        gone.push(watched);
        let target_span = Span::of_mut(&mut target);
        let list = vec![
            SpanCopy { source: device.memory().span(), target: target_span },
            SpanCopy { source: own.memory().span(), target: target_span },
        ];
        let copies =
            Copies { direction: Direction::DeviceToHost, method: None, is_pinned: true, list };
        let leases = (Watch(Some(watch)), target, own, Arc::clone(device.memory()));
        // SAFETY: the leases keep all of the memory, and nobody else has the target.
        let copy = unsafe { copier.start(copies, leases) };
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(copy);
    }
    for watched in gone {
        let gone = tokio::time::timeout(Duration::from_secs(20), watched).await;
        gone.expect("the leases are given up in time").expect("by their drop");
    }
    // The device works as before.
    let target = copier.allocate_pinned(LEN).expect("allocates");
    let target = copier.download(&device, target, &block).await.expect("downloads");
    assert!(target[..] == source[..]);
}

async fn what_cannot_be_is_refused(copier: &DeviceCopier) {
    let device = copier.allocate(100).expect("allocates");
    let pinned = Arc::new(copier.allocate_pinned(100).expect("allocates"));
    for (source, target, len) in [(0, 0, 101), (1, 0, 100), (0, 1, 100), (usize::MAX, 0, 2)] {
        let block = [BlockCopy { source, target, len }];
        let refused = copier.upload(&pinned, &device, &block).await.expect_err("outside");
        assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
        let refused = copier.copy(&device, &device, &block).await.expect_err("outside");
        assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
    }
    let refused = device.copy_to(copier, 1, usize::MAX).await.expect_err("outside");
    assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
    copier.upload(&pinned, &device, &[]).await.expect("nothing is copied");
    let empty = BlockCopy { source: 100, target: 100, len: 0 };
    copier.upload(&pinned, &device, &[empty]).await.expect("nothing is copied");
}

fn what_there_is_no_room_for_is_refused(copier: &DeviceCopier) {
    let may_be = [ErrorKind::Overloaded, ErrorKind::BackendUnavailable];
    for len in [1 << 46, usize::MAX / 2] {
        let refused = copier.allocate(len).map(drop).expect_err("there is no such device");
        assert!(may_be.contains(&refused.kind()), "{refused}");
        let refused = copier.allocate_pinned(len).map(drop).expect_err("there is no such host");
        assert!(may_be.contains(&refused.kind()), "{refused}");
    }
    copier.allocate(1 << 20).expect("the device goes on");
}

fn ten_thousand_allocations_leave_nothing(copier: &DeviceCopier) {
    let before = copier.free_bytes().expect("the device answers");
    let mut kept: Vec<DeviceBuffer> = Vec::new();
    let mut pinned: Vec<PinnedBuffer> = Vec::new();
    for round in 0..10_000 {
        // Some of those that live go, the older and the younger.
        if kept.len() == 8 {
            kept.drain(round % 4..round % 4 + 4);
            pinned.clear();
        }
        kept.push(copier.allocate(64 << 10).expect("allocates"));
        if round % 16 == 0 {
            pinned.push(copier.allocate_pinned(64 << 10).expect("allocates"));
        }
    }
    drop((kept, pinned));
    let after = copier.free_bytes().expect("the device answers");
    // Others may use the device too, and drivers keep a little.
    assert!(after + (64 << 20) >= before, "{before} bytes were free, {after} are");
}

/// Tells when it is dropped.
struct Watch(Option<oneshot::Sender<()>>);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.take().map(|gone| gone.send(()));
    }
}

/// Numbers that are the same for the same seed (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let mut x = self.0 | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number from `min` to `max`, small ones as often as large ones.
    fn len(&mut self, min: usize, max: usize) -> usize {
        let bits = max.ilog2() - min.ilog2() + 1;
        let top = min << (self.next() % u64::from(bits));
        let more = self.next() % (top as u64);
        (top + usize::try_from(more).unwrap_or(0)).min(max)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
        bytes
    }

    fn pinned(&mut self, copier: &DeviceCopier, len: usize) -> Arc<PinnedBuffer> {
        let mut pinned = copier.allocate_pinned(len).expect("allocates");
        pinned.copy_from_slice(&self.bytes(len));
        Arc::new(pinned)
    }

    /// Gives each block, which follow each other in a source, a place in a target: in shuffled order, with
    /// gaps of up to 63 bytes.
    fn scatter(&mut self, lens: &[usize]) -> Vec<BlockCopy> {
        let mut start = 0;
        let blocks = lens.iter().map(|&len| {
            start += len;
            BlockCopy { source: start - len, target: 0, len }
        });
        let mut blocks: Vec<_> = blocks.collect();
        let mut order: Vec<usize> = (0..lens.len()).collect();
        for at in (1..order.len()).rev() {
            let other = usize::try_from(self.next() % (at as u64 + 1)).unwrap_or(0);
            order.swap(at, other);
        }
        let mut end = 0;
        for index in order {
            let gap = usize::try_from(self.next() % 64).unwrap_or(0);
            blocks[index].target = end + gap;
            end += gap + lens[index];
        }
        blocks
    }
}
