//! How a list of copies is handed to a device: one by one, as one batch, or to a kernel; pure.

use super::device::{Copies, Direction, SpanCopy};

/// Who copies the blocks of one submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// A call of the driver, and a turn of the copy engine, for each block.
    Each,
    /// One call of the driver for all blocks, which it spreads over its copy engines.
    Batch,
    /// A kernel that reads and writes 16 bytes per thread and step.
    Kernel,
}

/// What a device and its driver can do besides [`Method::Each`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offers {
    pub(crate) batch: bool,
    pub(crate) kernel: bool,
}

/// Blocks that go the same way, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) method: Method,
    pub(crate) reason: &'static str,
    pub(crate) copies: Vec<SpanCopy>,
}

/// Deals the copies out: each that is not empty to exactly one share.
pub(crate) fn assign(copies: &Copies, offers: Offers) -> Vec<Share> {
    let filled = copies.list.iter().copied().filter(|copy| copy.source.len() > 0);
    let (small, large): (Vec<_>, Vec<_>) =
        filled.partition(|copy| copy.source.len() < kernel_below(copies.direction, offers));
    let share = |(list, is_small): (Vec<SpanCopy>, bool)| {
        let forced = copies.method.filter(|&method| is_offered(method, copies.is_pinned, offers));
        let (method, reason) = match forced {
            Some(method) => (method, "the configuration says so"),
            None => choose(is_small, list.len(), copies.is_pinned, offers),
        };
        Share { method, reason, copies: list }
    };
    let shares = [(small, true), (large, false)].into_iter().filter(|(list, _)| !list.is_empty());
    shares.map(share).collect()
}

fn choose(is_small: bool, count: usize, is_pinned: bool, offers: Offers) -> (Method, &'static str) {
    match (is_small, count) {
        _ if !is_pinned => (Method::Each, "pageable memory passes through the driver's own buffer"),
        (_, ..=FEW) => (Method::Each, "a few calls cost less than gathering"),
        (true, _) if offers.kernel => (Method::Kernel, "a copy engine's start outlasts the block"),
        _ if offers.batch => (Method::Batch, "one call starts every block on the copy engines"),
        (true, _) => (Method::Each, "neither kernel nor batch is at hand"),
        (false, _) => (Method::Each, "the blocks outlast a copy engine's start"),
    }
}

fn is_offered(method: Method, is_pinned: bool, offers: Offers) -> bool {
    match method {
        Method::Each => true,
        Method::Batch => is_pinned && offers.batch,
        Method::Kernel => is_pinned && offers.kernel,
    }
}

/// Returns the size from which on blocks are left to the copy engines.
///
/// Where a batch spares the calls, an engine's start of about 2 µs is all that a kernel saves; where
/// there is none, the call comes on top. Within the device a kernel has all of its memory's speed, of
/// which one engine has a part. `docs/gpu.md` has the sweep that these are to be checked by.
fn kernel_below(direction: Direction, offers: Offers) -> usize {
    match (direction, offers.batch) {
        (Direction::DeviceToDevice, _) => 1 << 20,
        (_, true) => 32 << 10,
        (_, false) => 256 << 10,
    }
}

/// As many blocks as are copied one by one whatever their size.
const FEW: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Span;

    const ALL: Offers = Offers { batch: true, kernel: true };
    const NONE: Offers = Offers { batch: false, kernel: false };

    fn copies(direction: Direction, is_pinned: bool, lens: &[usize]) -> Copies {
        let memory = vec![0; lens.iter().copied().max().unwrap_or(0)];
        let span = |len| Span::of(&memory[..len]);
        let list = lens.iter().map(|&len| SpanCopy { source: span(len), target: span(len) });
        Copies { direction, method: None, is_pinned, list: list.collect() }
    }

    fn methods(copies: &Copies, offers: Offers) -> Vec<(Method, usize)> {
        let shares = assign(copies, offers);
        shares.iter().map(|share| (share.method, share.copies.len())).collect()
    }

    #[test]
    fn small_blocks_go_to_the_kernel_large_ones_to_the_engines_and_empty_ones_nowhere() {
        let mixed = [4096, 0, 512 << 10, 4096, 512 << 10, 4096, 512 << 10, 0];
        let mixed = copies(Direction::HostToDevice, true, &mixed);
        assert_eq!(methods(&mixed, ALL), [(Method::Kernel, 3), (Method::Batch, 3)]);
        let empty = copies(Direction::HostToDevice, true, &[0, 0]);
        assert_eq!(methods(&empty, ALL), []);
    }

    #[test]
    fn what_is_not_offered_is_not_chosen() {
        let only_batch = Offers { batch: true, kernel: false };
        let only_kernel = Offers { batch: false, kernel: true };
        for direction in
            [Direction::HostToDevice, Direction::DeviceToHost, Direction::DeviceToDevice]
        {
            let small = copies(direction, true, &[4096; 100]);
            assert_eq!(methods(&small, ALL), [(Method::Kernel, 100)]);
            assert_eq!(methods(&small, only_batch), [(Method::Batch, 100)]);
            assert_eq!(methods(&small, only_kernel), [(Method::Kernel, 100)]);
            assert_eq!(methods(&small, NONE), [(Method::Each, 100)]);
            let large = copies(direction, true, &[2 << 20; 100]);
            assert_eq!(methods(&large, ALL), [(Method::Batch, 100)]);
            assert_eq!(methods(&large, only_kernel), [(Method::Each, 100)]);
            assert_eq!(methods(&large, NONE), [(Method::Each, 100)]);
        }
    }

    #[test]
    fn without_a_batch_the_kernel_takes_larger_blocks() {
        let blocks = copies(Direction::DeviceToHost, true, &[128 << 10; 16]);
        assert_eq!(methods(&blocks, ALL), [(Method::Batch, 16)]);
        assert_eq!(methods(&blocks, Offers { batch: false, kernel: true }), [(Method::Kernel, 16)]);
    }

    #[test]
    fn pageable_memory_and_few_blocks_are_copied_one_by_one_even_if_forced() {
        let pageable = copies(Direction::HostToDevice, false, &[4096; 100]);
        assert_eq!(methods(&pageable, ALL), [(Method::Each, 100)]);
        let forced = Copies { method: Some(Method::Kernel), ..pageable };
        assert_eq!(methods(&forced, ALL), [(Method::Each, 100)]);
        let few = copies(Direction::HostToDevice, true, &[4096; 2]);
        assert_eq!(methods(&few, ALL), [(Method::Each, 2)]);
    }

    #[test]
    fn a_forced_method_takes_everything_and_says_why() {
        let mut mixed = copies(Direction::DeviceToDevice, true, &[16, 16, 16, 4 << 20]);
        for method in [Method::Each, Method::Batch, Method::Kernel] {
            mixed.method = Some(method);
            let shares = assign(&mixed, ALL);
            assert!(shares.iter().all(|share| share.method == method));
            assert!(shares.iter().all(|share| share.reason == "the configuration says so"));
            assert_eq!(shares.iter().map(|share| share.copies.len()).sum::<usize>(), 4);
        }
    }
}
