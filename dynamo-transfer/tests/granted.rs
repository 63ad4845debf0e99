//! Over each backend: no byte outside the ranges of a transfer ever changes, nor one of a region that
//! is closed. UCX is skipped, and that is said, without libucp.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::time::Duration;

#[cfg(feature = "ucx")]
use dynamo_transfer::conformance::unless_ucx_is_missing;
use dynamo_transfer::{
    Agent, BackendKind, BlockLayout, ErrorKind, HostBuffer, LocalDescriptor, RegisteredRegion,
    RemoteDescriptor, TransferOptions, conformance,
};
use eventually::eventually;
use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use reached::reached_over;
use tokio::runtime::Runtime;

#[path = "support/eventually.rs"]
mod eventually;
#[path = "support/reached.rs"]
mod reached;

type Allocate = fn(usize) -> HostBuffer;

/// Two agents that one backend joins.
struct Pair {
    owner: Agent,
    initiator: Agent,
    backend: BackendKind,
    allocate: Allocate,
}

/// Joins pairs by each backend; by shared memory twice, as it is mapped and as the kernel copies it.
async fn pairs(transfers_max: usize) -> Vec<Pair> {
    let plain: Allocate = HostBuffer::new;
    let mut ways = vec![(BackendKind::Memcpy, plain), (BackendKind::Tcp, plain)];
    if cfg!(target_os = "linux") {
        ways.push((BackendKind::Shm, plain));
        ways.push((BackendKind::Shm, |len| HostBuffer::shared(len).unwrap()));
    }
    if cfg!(feature = "ucx") {
        ways.push((BackendKind::Ucx, plain));
    }
    let mut pairs = Vec::new();
    for (backend, allocate) in ways {
        let config = reached_over(backend).with_transfers_max(transfers_max);
        let owner = Agent::start(config.clone().with_name("owner")).await;
        #[cfg(feature = "ucx")]
        let Some(owner) = unless_ucx_is_missing("bytes over UCX", owner) else { continue };
        #[cfg(not(feature = "ucx"))]
        let owner = owner.unwrap();
        let initiator = Agent::start(config.with_name("initiator")).await.unwrap();
        pairs.push(Pair { owner, initiator, backend, allocate });
    }
    pairs
}

async fn end(pair: Pair) {
    assert_eq!((pair.owner.stats().regions, pair.initiator.stats().regions), (0, 0));
    pair.initiator.shutdown().await;
    pair.owner.shutdown().await;
}

/// Ranges of a region.
#[derive(Debug, Clone)]
enum Layout {
    List(Vec<(u64, u64)>),
    Blocks(BlockLayout, Vec<u32>),
}

impl Layout {
    fn ranges(&self) -> Vec<(u64, u64)> {
        match self {
            Self::List(ranges) => ranges.clone(),
            Self::Blocks(layout, indices) => {
                let block = |index: &u32| {
                    (layout.offset + u64::from(*index) * layout.stride, layout.block_bytes)
                };
                indices.iter().map(block).collect()
            }
        }
    }

    fn total(&self) -> u64 {
        self.ranges().iter().map(|range| range.1).sum()
    }

    fn of_local(&self, region: &RegisteredRegion<HostBuffer>) -> LocalDescriptor {
        match self {
            Self::List(ranges) => region.descriptor(ranges.iter().copied()),
            Self::Blocks(layout, indices) => region.blocks(*layout, indices.clone()),
        }
        .unwrap()
    }

    fn of_remote(&self, region: &dynamo_transfer::RemoteRegion) -> RemoteDescriptor {
        match self {
            Self::List(ranges) => region.descriptor(ranges.iter().copied()),
            Self::Blocks(layout, indices) => region.blocks(*layout, indices.clone()),
        }
        .unwrap()
    }
}

/// One transfer between two regions: what is written, and what is read for it.
#[derive(Debug, Clone)]
struct Move {
    is_write: bool,
    to: Layout,
    from: Layout,
}

#[derive(Debug, Clone)]
struct Case {
    /// Sizes of the segments of both regions.
    segments: [Vec<usize>; 2],
    moves: Vec<Move>,
}

/// Ranges that do not overlap, in any order: neighbours, empty ones and single bytes among them.
fn list(region: u64) -> impl Strategy<Value = Layout> {
    let len = prop_oneof![Just(0), Just(1), 2..200u64, 200..region.max(201)];
    vec((prop_oneof![Just(0), 0..300u64], len), 0..40).prop_flat_map(move |steps| {
        let mut at = 0;
        let ranges = steps.into_iter().map_while(|(gap, len)| {
            let range = (at + gap, len);
            at += gap + len;
            (at <= region).then_some(range)
        });
        Just(ranges.collect::<Vec<_>>()).prop_shuffle().prop_map(Layout::List)
    })
}

/// Blocks of one distance, in any order.
fn blocks(region: u64) -> impl Strategy<Value = Layout> {
    (0..region / 4, 1..(region / 8).max(2), prop_oneof![Just(0), 0..500u64]).prop_flat_map(
        move |(offset, block_bytes, gap)| {
            let stride = block_bytes + gap;
            let count = u32::try_from((region - offset) / stride).unwrap().min(200);
            let layout =
                BlockLayout::contiguous(block_bytes).with_offset(offset).with_stride(stride);
            let indices =
                proptest::sample::subsequence((0..count).collect::<Vec<_>>(), 0..=count as usize);
            indices.prop_shuffle().prop_map(move |indices| Layout::Blocks(layout, indices))
        },
    )
}

/// What is read for `total` bytes: ranges anywhere, that may overlap.
fn sources(region: u64, total: u64) -> impl Strategy<Value = Layout> {
    vec((0..region, 1..region + 1), 1..30).prop_map(move |wanted| {
        let (mut ranges, mut left) = (Vec::new(), total);
        for &(offset, len) in wanted.iter().cycle() {
            let len = len.min(left).min(region - offset);
            ranges.push((offset, len));
            left -= len;
            if left == 0 {
                break;
            }
        }
        Layout::List(ranges)
    })
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = || {
        let size = prop_oneof![Just(0usize), Just(1), 2..5000usize, 5000..200_000usize];
        (vec(size, 0..4), 16..4000usize).prop_map(|(mut sizes, last)| {
            sizes.push(last);
            sizes
        })
    };
    [sizes(), sizes()].prop_flat_map(|segments| {
        let lens = segments.clone().map(|sizes| sizes.iter().sum::<usize>() as u64);
        let one = any::<bool>().prop_flat_map(move |is_write| {
            let [target, source] = if is_write { [lens[1], lens[0]] } else { lens };
            prop_oneof![list(target).boxed(), blocks(target).boxed()].prop_flat_map(move |to| {
                let from = sources(source, to.total());
                from.prop_map(move |from| Move { is_write, to: to.clone(), from })
            })
        });
        let moves = vec(one, 1..4);
        moves.prop_map(move |moves| Case { segments: segments.clone(), moves })
    })
}

/// Moves on plain bytes as a transfer has to.
fn model(bytes: &mut [Vec<u8>; 2], one: &Move) {
    let [local, remote] = bytes;
    let (target, source) = if one.is_write { (remote, local) } else { (local, remote) };
    let index = |at: u64| usize::try_from(at).unwrap();
    let span = |(at, len): (u64, u64)| index(at)..index(at + len);
    let moved = one.from.ranges().into_iter().map(|range| &source[span(range)]);
    let moved = moved.collect::<Vec<_>>().concat();
    let mut moved = &moved[..];
    for (at, len) in one.to.ranges() {
        let (head, rest) = moved.split_at(index(len));
        target[span((at, len))].copy_from_slice(head);
        moved = rest;
    }
}

/// Fills segments with bytes of which no two in a row repeat soon.
fn filled(sizes: &[usize], allocate: Allocate, seed: u8) -> Vec<HostBuffer> {
    let period: Vec<u8> =
        (0..=u8::MAX).map(|byte| byte.wrapping_mul(3).wrapping_add(seed)).collect();
    let period = &period[..PERIOD];
    let fill = |len: &usize| {
        let mut buffer = allocate(*len);
        for chunk in buffer.chunks_mut(PERIOD) {
            chunk.copy_from_slice(&period[..chunk.len()]);
        }
        buffer
    };
    sizes.iter().map(fill).collect()
}

fn joined(segments: &[HostBuffer]) -> Vec<u8> {
    segments.iter().map(|segment| &segment[..]).collect::<Vec<_>>().concat()
}

async fn check(pair: &Pair, case: &Case) -> Result<(), TestCaseError> {
    let Pair { owner, initiator, backend, allocate } = pair;
    let local = filled(&case.segments[0], *allocate, 1);
    let remote = filled(&case.segments[1], *allocate, 99);
    let mut expected = [joined(&local), joined(&remote)];
    let local = initiator.register_mut(local).unwrap();
    let remote = owner.register_peer_writable(remote).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([remote.grant()]).unwrap()).unwrap();
    for one in &case.moves {
        let (of_local, of_remote) =
            if one.is_write { (&one.from, &one.to) } else { (&one.to, &one.from) };
        let (ours, theirs) = (of_local.of_local(&local), of_remote.of_remote(&peer.regions()[0]));
        let options = TransferOptions::default();
        let transfer = if one.is_write {
            initiator.write(ours, theirs, options)
        } else {
            initiator.read(ours, theirs, options)
        };
        let report = transfer.await.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!((report.bytes, report.backend), (one.to.total(), *backend));
        model(&mut expected, one);
    }
    let got = [joined(&local.close().await), joined(&remote.close().await)];
    for (side, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let is_wrong = |(got, expected): (&u8, &u8)| got != expected;
        // Compared as a whole first: byte by byte takes its time.
        if got != expected {
            let wrong = got.iter().zip(expected).position(is_wrong);
            prop_assert_eq!(wrong, None, "side {} over {}", side, backend);
        }
    }
    Ok(())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn no_byte_outside_the_granted_ranges_ever_changes() {
    let runtime = runtime();
    for pair in runtime.block_on(pairs(TRANSFERS_MAX)) {
        let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
        let outcome =
            TestRunner::new(config).run(&case(), |case| runtime.block_on(check(&pair, &case)));
        outcome.unwrap_or_else(|error| unreachable!("{}: {error}", pair.backend));
        runtime.block_on(end(pair));
    }
}

#[test]
fn a_region_closed_under_transfers_comes_back_and_is_touched_no_more() {
    runtime().block_on(async {
        for pair in pairs(TRANSFERS_MAX).await {
            for round in 0..8 {
                close_under_transfers(&pair, round).await;
            }
            end(pair).await;
        }
    });
}

#[test]
fn transfers_beyond_the_limit_are_refused_over_each_backend() {
    runtime().block_on(async {
        for pair in pairs(2).await {
            let Pair { owner, initiator, backend, allocate } = &pair;
            conformance::run_at_the_limit(owner, initiator, *backend, allocate).await;
            end(pair).await;
        }
    });
}

/// Closes the owner's region, or the initiator's, while it is read and written.
async fn close_under_transfers(pair: &Pair, round: usize) {
    let Pair { owner, initiator, backend, allocate } = pair;
    let remote = owner.register_peer_writable(vec![allocate(CLOSED_BYTES)]).unwrap();
    let local = initiator.register_mut(vec![allocate(CLOSED_BYTES)]).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([remote.grant()]).unwrap()).unwrap();
    let whole = [(0, CLOSED_BYTES as u64)];
    let post = |is_write| {
        let ours = local.descriptor(whole).unwrap();
        let theirs = peer.regions()[0].descriptor(whole).unwrap();
        let options = TransferOptions::default();
        if is_write {
            initiator.write(ours, theirs, options)
        } else {
            initiator.read(ours, theirs, options)
        }
    };
    let transfers: Vec<_> = (0..8).map(|index| post(index % 2 == 0)).collect();
    let wanted = (CLOSED_BYTES * round / 8) as u64;
    eventually("the first moves", || transfers[0].progress().bytes_moved >= wanted).await;
    let closes_remote = round.is_multiple_of(2);
    let late = [post(true), post(false)];
    let (closing, other) = if closes_remote { (remote, local) } else { (local, remote) };
    let closed = tokio::time::timeout(PATIENCE, closing.close()).await;
    let mut memory = closed.expect("operations in flight end");
    memory[0].fill(9);
    for outcome in join_all(transfers.into_iter().chain(late)).await {
        if let Err(error) = outcome {
            assert_eq!(error.kind(), ErrorKind::StaleRegion, "{backend}: {error}");
        }
    }
    other.close().await;
    assert!(memory[0].iter().all(|byte| *byte == 9), "{backend}: touched after it was closed");
}

/// Divides no block.
const PERIOD: usize = 251;

const CLOSED_BYTES: usize = 8 << 20;

/// More than are posted here.
const TRANSFERS_MAX: usize = 64;

const PATIENCE: Duration = Duration::from_secs(20);
