use std::collections::VecDeque;

/// How old a cache was at which time; pure.
///
/// GreedyDual's age grows with each eviction, and a block takes the age of its last use. A block that
/// is offered late was used at an earlier age, which is looked up here: between two marks the age is
/// taken to have grown evenly, and before the first it is that of the first. With time alone it grows
/// too, by so little that it decides only between blocks of the same age.
#[derive(Debug)]
pub(super) struct Ages {
    /// Time and age, both growing.
    marks: VecDeque<(u64, f64)>,
    /// The latest time, and the age when it was first heard of.
    latest: (u64, f64),
    age: f64,
    /// How much the age grows from one mark to the next, at least.
    step: f64,
}

impl Default for Ages {
    fn default() -> Self {
        let marks = VecDeque::with_capacity(MARKS_MAX);
        Self { marks, latest: (0, 0.0), age: 0.0, step: 0.0 }
    }
}

impl Ages {
    /// Keeps marks so far apart that they reach back over an age of `span`: a block that was used
    /// earlier has gone already, or goes next.
    pub(super) fn reach(&mut self, span: f64) {
        self.step = self.step.max(span / SPAN_STEPS);
    }

    /// Says that something was evicted whose age had come.
    pub(super) fn grow_to(&mut self, age: f64) {
        self.age = self.age.max(age);
    }

    /// Returns the age at that time: of the present, if it is later than any before.
    pub(super) fn at(&mut self, time: u64) -> f64 {
        if time > self.latest.0 {
            self.advance(time);
        }
        let behind = self.marks.partition_point(|mark| mark.0 <= time);
        let to = self.marks.get(behind).unwrap_or(&self.latest);
        let Some(from) = behind.checked_sub(1).and_then(|at| self.marks.get(at)) else {
            return to.1;
        };
        let length = (to.0 - from.0).max(1) as f64;
        from.1 + (to.1 - from.1) * ((time - from.0) as f64 / length)
    }

    fn advance(&mut self, time: u64) {
        let passed = (time - self.latest.0) as f64;
        self.age += (passed * self.step * STEPS_PER_TIME).min(self.step);
        let marked = self.marks.back().map_or(f64::NEG_INFINITY, |mark| mark.1);
        if self.latest.1 >= marked + self.step {
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back(self.latest);
        }
        self.latest = (time, self.age);
    }
}

/// Steps in a span.
const SPAN_STEPS: f64 = 128.0;

/// What time alone adds to the age; sums of 10^6 spans still show it.
const STEPS_PER_TIME: f64 = 1e-7;

/// Enough for a span, for marks are a step apart.
const MARKS_MAX: usize = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_between_two_has_an_age_between_theirs() {
        let mut ages = Ages::default();
        assert_eq!(ages.at(10), 0.0);
        ages.grow_to(4.0);
        assert_eq!(ages.at(10), 0.0, "of the time that was, not of what came after");
        assert_eq!(ages.at(20), 4.0);
        ages.grow_to(5.0);
        ages.grow_to(4.5);
        assert_eq!(ages.at(30), 5.0);
        assert_eq!([ages.at(15), ages.at(25), ages.at(3)], [2.0, 4.5, 0.0]);
    }

    #[test]
    fn marks_are_few_and_reach_back_over_the_span() {
        let mut ages = Ages::default();
        ages.reach(1.0);
        for time in 0..100_000_u64 {
            ages.grow_to(time as f64 / 1000.0);
            ages.at(time);
        }
        assert!(ages.marks.len() <= MARKS_MAX);
        for time in (99_000..100_000_u64).step_by(7) {
            let off = (ages.at(time) - time as f64 / 1000.0).abs();
            assert!(off < 1e-6, "{time}: {off}");
        }
    }
}
