use dynamo_core::protocol::KvEvent;

/// Watches the numbering of one worker's events; pure.
///
/// After a gap nobody knows what the lost events removed, so what was known of the worker is
/// dropped. The index then holds what the worker stores from there on: it says no more than was
/// true when the last applied event was published, and less, because blocks that stay cached are
/// not announced again. A wrong choice costs latency only.
#[derive(Debug, Default)]
pub struct Sequencer {
    /// Epoch and number of the last event that was not ignored.
    last: Option<(u64, u64)>,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one.
    Apply,
    /// Events before it were not seen: forget the worker, then apply it.
    Gap,
    /// The publisher restarted: forget the worker, then apply it.
    Restart,
    /// It was applied already, or is of an earlier life of the publisher.
    Ignore,
}

impl Sequencer {
    /// Judges the next event that arrived.
    pub fn judge(&mut self, event: &KvEvent) -> Verdict {
        let verdict = match self.last {
            None if event.seq == 0 => Verdict::Apply,
            None => Verdict::Gap,
            Some((epoch, _)) if event.epoch < epoch => Verdict::Ignore,
            Some((epoch, _)) if event.epoch > epoch => Verdict::Restart,
            Some((_, seq)) if event.seq <= seq => Verdict::Ignore,
            Some((_, seq)) if event.seq - seq == 1 => Verdict::Apply,
            Some(_) => Verdict::Gap,
        };
        if verdict != Verdict::Ignore {
            self.last = Some((event.epoch, event.seq));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::{InstanceId, KvChange, WorkerId};

    use super::*;

    fn judge(numbers: impl IntoIterator<Item = (u64, u64)>) -> Vec<Verdict> {
        let mut sequencer = Sequencer::default();
        let worker = WorkerId::new(InstanceId(1));
        let change = KvChange::AllBlocksCleared;
        numbers
            .into_iter()
            .map(|(epoch, seq)| KvEvent { worker, epoch, seq, change: change.clone() })
            .map(|event| sequencer.judge(&event))
            .collect()
    }

    #[test]
    fn repeats_and_latecomers_are_ignored_and_gaps_are_seen() {
        use Verdict::{Apply, Gap, Ignore};
        let numbers = [(0, 0), (0, 1), (0, 1), (0, 4), (0, 3), (0, 5)];
        assert_eq!(judge(numbers), [Apply, Apply, Ignore, Gap, Ignore, Apply]);
    }

    #[test]
    fn a_listener_that_joins_late_has_missed_events() {
        assert_eq!(judge([(3, 7), (3, 8)]), [Verdict::Gap, Verdict::Apply]);
    }

    #[test]
    fn a_larger_epoch_replaces_a_smaller_one_for_good() {
        use Verdict::{Apply, Ignore, Restart};
        let numbers = [(1, 0), (5, 0), (1, 1), (5, 1)];
        assert_eq!(judge(numbers), [Apply, Restart, Ignore, Apply]);
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let last = (u64::MAX, u64::MAX);
        assert_eq!(judge([last, last, (0, 0)]), [Verdict::Gap, Verdict::Ignore, Verdict::Ignore]);
    }
}
