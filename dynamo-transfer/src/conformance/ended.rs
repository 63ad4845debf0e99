//! How transfers end that do not arrive, and what is left of them.

use super::{LARGE, Memory, Pair, pattern, usual, within};
use crate::{ErrorKind, Rights, Transfer, TransferGroup};

pub(super) async fn what_settles_together_is_waited_for_together<M: Memory>(pair: &Pair<'_, M>) {
    let expected = pattern(13, 1 << 20);
    let (region, peer) = pair.offer(&expected, Rights::ReadOnly).await;
    let target = pair.target(1 << 20);
    let mut forged = peer.clone();
    forged.token.proof ^= 1;
    // Of different sizes, so that outcomes can be told apart.
    let read = |region: &crate::RemoteRegion, index: u64| {
        pair.read(&target, region, (index << 18, (1 << 18) - index), usual())
    };
    let mut group: TransferGroup =
        [read(&forged, 0), read(&peer, 1), read(&peer, 2)].into_iter().collect();
    group.push(read(&peer, 3));
    let outcomes = group.settled().await;
    // What has ended is there, though nothing but the group has waited for it.
    let mut got = vec![0; 1 << 20];
    target.read_at(0, &mut got).expect("inside");
    let outcomes: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.map(|report| report.bytes).map_err(|error| error.kind()))
        .collect();
    let bytes = |index: u64| Ok((1 << 18) - index);
    assert_eq!(outcomes, [Err(ErrorKind::PermissionDenied), bytes(1), bytes(2), bytes(3)]);
    assert!(got[..1 << 18].iter().all(|byte| *byte == 0), "what was refused");
    for index in 1..4 {
        let range = (index << 18)..((index + 1) << 18) - index;
        assert!(got[range.clone()] == expected[range], "the read of index {index}");
    }
    pair.memory.close(region).await;
}

/// How a transfer is given up.
#[derive(Debug, Clone, Copy)]
enum GivenUp {
    Cancelled,
    Dropped,
}

pub(super) async fn a_transfer_that_is_given_up_touches_nothing_once_it_is_quiet<M: Memory>(
    pair: &Pair<'_, M>,
) {
    let before = pair.initiator.stats().cancelled_total;
    for is_write in [false, true] {
        for how in [GivenUp::Cancelled, GivenUp::Dropped] {
            for has_begun in [false, true] {
                give_up(pair, is_write, how, has_begun).await;
            }
        }
    }
    // A busy machine may have let one of them arrive.
    assert!(pair.initiator.stats().cancelled_total > before, "all of them were too quick");
    let (region, peer) = pair.offer(&pattern(18, LARGE), Rights::ReadOnly).await;
    pair.read_one(&peer, (0, LARGE as u64)).await.expect("the next one goes its way");
    pair.memory.close(region).await;
}

/// Gives up a transfer of which nothing, or something, has moved; then writes to what it was to touch.
async fn give_up<M: Memory>(pair: &Pair<'_, M>, is_write: bool, how: GivenUp, has_begun: bool) {
    let (bytes, nothing) = (pattern(19, LARGE), vec![0; LARGE]);
    let (here, there) = if is_write { (&bytes, &nothing) } else { (&nothing, &bytes) };
    let (region, peer) = pair.offer(there, Rights::PeersWrite).await;
    let local = pair.source(here);
    let all = (0, LARGE as u64);
    let transfer = match is_write {
        true => pair.write(&local, &peer, all, usual()),
        false => pair.read(&local, &peer, all, usual()),
    };
    if has_begun {
        within(begun(&transfer)).await;
    }
    match how {
        GivenUp::Dropped => drop(transfer),
        GivenUp::Cancelled => {
            if let Err(error) = within(transfer.cancel()).await {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            }
        }
    }
    // Quiet memory is given back at once, and that of what was dropped when it is quiet.
    let mut memory = within(local.close()).await.remove(0);
    memory.fill(MARK);
    let there = within(pair.memory.close(region)).await;
    assert!(is_made_of(&memory, &[&vec![MARK; LARGE]]), "{how:?}: touched after it was quiet");
    assert!(is_made_of(&there, &[&bytes, &nothing]), "{how:?}: read after it was quiet");
}

pub(super) async fn a_deadline_that_has_passed_ends_a_transfer_at_once<M: Memory>(
    pair: &Pair<'_, M>,
) {
    let (region, peer) = pair.offer(&pattern(20, LARGE), Rights::ReadOnly).await;
    let mut overdue = 0;
    for _ in 0..4 {
        let target = pair.target(LARGE);
        let options = usual().with_deadline(std::time::Duration::ZERO);
        let mut read = pair.read(&target, &peer, (0, LARGE as u64), options);
        // Here too a busy machine may have let one of them arrive.
        if let Err(error) = within(&mut read).await {
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
            assert_eq!(error.peer(), Some(pair.owner.name()));
            overdue += 1;
        }
        within(read.quiet()).await;
        let mut memory = within(target.close()).await.remove(0);
        memory.fill(MARK);
        // Behind it on the same way, if there is one.
        pair.read_one(&peer, (0, 16)).await.expect("the way is free");
        assert!(is_made_of(&memory, &[&vec![MARK; LARGE]]), "touched after it was quiet");
    }
    assert!(overdue > 0, "all of them were too quick");
    within(pair.memory.close(region)).await;
}

/// Waits until some of it has moved, or all of it.
async fn begun(transfer: &Transfer) {
    while transfer.progress().bytes_moved == 0 {
        tokio::task::yield_now().await;
    }
}

/// Tells whether each byte is that of one of `choices`: blocks are compared as a whole first, since
/// byte by byte takes its time.
fn is_made_of(bytes: &[u8], choices: &[&Vec<u8>]) -> bool {
    const BLOCK: usize = 16 << 10;
    bytes.chunks(BLOCK).enumerate().all(|(index, block)| {
        let start = index * BLOCK;
        let choices = choices.iter().map(|choice| &choice[start..start + block.len()]);
        choices.clone().any(|choice| choice == block)
            || block
                .iter()
                .enumerate()
                .all(|(at, byte)| choices.clone().any(|choice| choice[at] == *byte))
    })
}

/// Nothing that is moved has it: patterns are odd.
const MARK: u8 = 0xEE;
