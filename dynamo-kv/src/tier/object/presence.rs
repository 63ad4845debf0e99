//! What is there, by as few requests as may be.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use futures::TryStreamExt;
use futures::future::join_all;
use object_store::ObjectStoreExt;
use tokio::time::{Instant, timeout};

use super::config::OnFull;
use super::request::Failure;
use super::{Inner, ObjectTier};
use crate::identity::{BlockIdentity, BlockKey};

impl ObjectTier {
    /// Returns how many of the first keys can probably be found without a gap.
    ///
    /// What the tier has stored, loaded or seen it knows. In what it does not know it looks for the
    /// end of the prefix: at the first and the last of those blocks, then at eight that lie evenly
    /// between those that are there and those that are not, all at once, until they meet. Blocks in
    /// front of one that is there are guessed to be there: a wrong guess is a miss when it is loaded, is
    /// told to nobody, and keeps nobody from storing the block. Of n unknown blocks that takes
    /// 1 + log₉ n round trips, one if all or none of them are there.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        let inner = &self.0;
        let (mut there, mut end) = inner.index().bounds(keys, Instant::now());
        let mut asked = 2;
        while there < end {
            let places = spread(there, end, asked);
            let answers = join_all(places.iter().map(|at| inner.probe(&keys[*at]))).await;
            for (at, is_there) in places.into_iter().zip(answers) {
                if !is_there {
                    end = at;
                    break;
                }
                there = at + 1;
            }
            asked = PROBES;
        }
        inner.used(&keys[..there]);
        keys[..there].iter().for_each(|key| inner.index().guess(&key.identity));
        inner.make_room().await;
        there
    }

    /// Lists the store, so that what is there is known without asking for it; returns how many blocks
    /// that is.
    ///
    /// A tier begins with no knowledge. If it deletes what is too much
    /// ([`OnFull::Delete`]), list the store first: what it has not seen does not count.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn refresh(&self) -> dynamo_core::Result<usize> {
        let inner = &self.0;
        let place = inner.place().await?;
        let begun = inner.index().now();
        let mut attempts = inner.attempts();
        let newest = loop {
            match inner.survey().await {
                Ok(newest) => break newest,
                Err(failure) => attempts.again(failure).await?,
            }
        };
        drop(place);
        let seen: Vec<_> = newest.into_iter().map(|(_, identity)| identity).collect();
        let blocks = {
            let mut index = inner.index();
            index.survey(begun, &seen);
            index.stats().blocks
        };
        inner.make_room().await;
        Ok(blocks)
    }
}

impl Inner {
    /// Asks whether a block is there; what does not answer in time is not.
    async fn probe(&self, key: &BlockKey) -> bool {
        let path = self.format.path(&key.identity);
        let begun = self.index().now();
        let asked = async {
            let _place = self.place().await?;
            Ok::<_, Failure>(self.store.head(&path).await?)
        };
        let answer = timeout(self.config.probe_timeout, asked).await;
        let is_sized = matches!(answer, Ok(Ok(meta)) if self.is_sized(&meta));
        let mut index = self.index();
        let is_there = is_sized && !index.is_damaged(&key.identity) && index.learn(key, begun);
        if !is_there {
            index.lack(&key.identity, Instant::now());
        }
        is_there
    }

    /// Returns the blocks that were written last, the oldest first; deletes the others if it is to.
    async fn survey(&self) -> Result<Vec<(i64, BlockIdentity)>, Failure> {
        let mut listed = self.store.list(Some(self.format.root()));
        let mut newest = BinaryHeap::new();
        while let Some(meta) = self.within(listed.try_next()).await? {
            let Some(identity) = self.format.identity(&meta.location) else { continue };
            if !self.is_sized(&meta) {
                continue;
            }
            newest.push(Reverse((meta.last_modified.timestamp_millis(), identity)));
            if newest.len() > self.config.known_max
                && let Some(Reverse((_, oldest))) = newest.pop()
                && self.config.on_full == OnFull::Delete
            {
                self.delete(&oldest).await?;
            }
        }
        let mut newest: Vec<_> = newest.into_iter().map(|Reverse(block)| block).collect();
        newest.sort_unstable();
        Ok(newest)
    }
}

/// Returns up to `count` places from `begin` to before `end`, evenly: the first and the last of two.
fn spread(begin: usize, end: usize, count: usize) -> Vec<usize> {
    let len = end - begin;
    if count == 2 && len > 1 {
        return vec![begin, end - 1];
    }
    let count = count.min(len);
    // The parts that they leave between them are of one size.
    (1..=count).map(|part| begin + (part * (len + 1)) / (count + 1) - 1).collect()
}

/// Blocks that are asked for at once.
const PROBES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_ascend_lie_inside_and_leave_parts_of_one_size() {
        for len in 1..200 {
            for count in [2, 8] {
                let places = spread(7, 7 + len, count);
                assert_eq!(places.len(), count.min(len));
                assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
                assert!(places.iter().all(|at| (7..7 + len).contains(at)), "{places:?}");
            }
        }
        assert_eq!(spread(0, 100, 2), [0, 99]);
        assert_eq!(spread(0, 80, 8), [8, 17, 26, 35, 44, 53, 62, 71]);
    }
}
