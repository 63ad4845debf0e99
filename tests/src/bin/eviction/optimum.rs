//! What the best of all policies would find.

use std::collections::BTreeSet;

use crate::trace::{Name, Trace};

/// Returns how many blocks each request finds under Belady's MIN (L. A. Belady: "A study of replacement
/// algorithms for a virtual-storage computer", IBM Systems Journal, 1966), with bypass: of the blocks
/// cached and the one at hand, the one goes that is used again last, or never.
///
/// No policy finds more blocks in all. Requests take their blocks in order, so a block is used again
/// before all that follow it: MIN evicts leaves first by itself, and the rule that a block is found
/// only if all before it are costs it nothing. A policy of a pool may stay below it also because a pool
/// holds all blocks of a request at once, which MIN does not.
pub(crate) fn found(trace: &Trace, capacity: usize) -> Vec<usize> {
    let mut cached = BTreeSet::new();
    // By when it is used next: the request, and the place in it.
    let mut keys: Vec<Option<Key>> = vec![None; trace.unique()];
    let again = used_again(trace);
    let served = trace.requests.iter().zip(again).map(|(request, again)| {
        let mut found = 0;
        for (name, again) in request.iter().zip(again) {
            if keys[*name].take().is_some_and(|key| cached.remove(&key)) {
                found += 1;
            }
            let Some(again) = again else { continue };
            let key = (again, trace.places[*name].1, *name);
            cached.insert(key);
            keys[*name] = Some(key);
            if cached.len() > capacity
                && let Some((_, _, last)) = cached.pop_last()
            {
                keys[last] = None;
            }
        }
        found
    });
    served.collect()
}

type Key = (usize, u32, Name);

/// Returns, for each block of each request, the request that uses it next.
fn used_again(trace: &Trace) -> Vec<Vec<Option<usize>>> {
    let mut next = vec![None; trace.unique()];
    let backwards = trace.requests.iter().enumerate().rev();
    let mut again: Vec<Vec<_>> = backwards
        .map(|(number, request)| request.iter().map(|name| next[*name].replace(number)).collect())
        .collect();
    again.reverse();
    again
}

#[cfg(test)]
mod tests {
    use dynamo_core::random::Random;

    use super::*;

    /// The most blocks that can be found, over all ways to keep blocks after each request.
    fn most_found(trace: &Trace, capacity: u32) -> usize {
        let sets = 1_usize << trace.unique();
        let mut best = vec![None; sets];
        best[0] = Some(0);
        for request in &trace.requests {
            let own: usize = request.iter().map(|name| 1 << name).sum();
            let mut next = vec![None; sets];
            for (cached, so_far) in best.iter().enumerate() {
                let Some(so_far) = so_far else { continue };
                let is_there = |name: &&Name| cached >> **name & 1 == 1;
                let found = so_far + request.iter().take_while(is_there).count();
                let may_keep =
                    |kept: &usize| kept & !(cached | own) == 0 && kept.count_ones() <= capacity;
                for kept in (0..sets).filter(may_keep) {
                    next[kept] = next[kept].max(Some(found));
                }
            }
            best = next;
        }
        best.into_iter().flatten().max().unwrap()
    }

    #[test]
    fn nothing_finds_more_blocks_than_the_optimum_and_something_finds_as_many() {
        let mut random = Random::new(1);
        for _ in 0..40 {
            // A block alone, or a path from the root of a tree of three levels on.
            let mut prompt = || {
                let leaf = 4 + random.below(4).unwrap() as u64;
                let length = random.below(4).unwrap();
                if length == 0 { vec![0] } else { [1, leaf >> 1, leaf][..length].to_vec() }
            };
            let prompts: Vec<_> = (0..12).map(|_| prompt()).collect();
            let trace = Trace::of(prompts.iter().map(|ids| &ids[..])).unwrap();
            for capacity in 1..5 {
                let optimum: usize = found(&trace, capacity as usize).iter().sum();
                assert_eq!(optimum, most_found(&trace, capacity), "{prompts:?} in {capacity}");
            }
        }
    }
}
