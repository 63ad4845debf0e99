use std::fmt;

use dynamo_core::protocol::{InstanceId, WorkerId};

use crate::choose::{Columns, SessionKey};
use crate::workers::{Fleet, is_in};

/// Where a request may go; by default anywhere. Borrows all it says, so that it costs nothing to
/// make.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Constraints<'a> {
    /// Never one of these instances.
    pub exclude: &'a [InstanceId],
    /// One of these instances, if there are any.
    pub only: Option<&'a [InstanceId]>,
    /// This worker and no other.
    pub pinned: Option<WorkerId>,
    /// One of these workers only if nobody else is left, or if the session is pinned there.
    pub avoid: &'a [WorkerId],
    /// The session that the request is of: it stays with the worker that had it last, as far as
    /// [`RouterConfig::affinity`](crate::RouterConfig::affinity) says.
    pub session: Option<SessionKey>,
    /// Only where each of these labels has its value.
    pub required: &'a [(&'a str, &'a str)],
    /// Rather where these labels have their values.
    pub preferred: &'a [Preference<'a>],
}

/// A label that a worker should rather have.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a label, its value and what it is worth")]
pub struct Preference<'a> {
    /// The label.
    pub label: &'a str,
    /// Its value.
    pub value: &'a str,
    /// What it costs to go where the label has not that value, in seconds: the way to another
    /// zone, say. At least 0.
    pub seconds: f64,
}

impl<'a> Constraints<'a> {
    /// Leaves out `exclude`.
    #[must_use]
    pub const fn with_exclude(mut self, exclude: &'a [InstanceId]) -> Self {
        self.exclude = exclude;
        self
    }

    /// Leaves out all but `only`.
    #[must_use]
    pub const fn with_only(mut self, only: &'a [InstanceId]) -> Self {
        self.only = Some(only);
        self
    }

    /// Leaves out all but `worker`.
    #[must_use]
    pub const fn with_pinned(mut self, worker: WorkerId) -> Self {
        self.pinned = Some(worker);
        self
    }

    /// Leaves out `avoid` unless nobody else is left.
    #[must_use]
    pub const fn with_avoid(mut self, avoid: &'a [WorkerId]) -> Self {
        self.avoid = avoid;
        self
    }

    /// Keeps the request with its session.
    #[must_use]
    pub const fn with_session(mut self, session: Option<SessionKey>) -> Self {
        self.session = session;
        self
    }

    /// Leaves out who has not all of `labels`, each with its value.
    #[must_use]
    pub const fn with_required(mut self, labels: &'a [(&'a str, &'a str)]) -> Self {
        self.required = labels;
        self
    }

    /// Lets who lacks one of `labels` cost more.
    #[must_use]
    pub const fn with_preferred(mut self, labels: &'a [Preference<'a>]) -> Self {
        self.preferred = labels;
        self
    }

    /// Marks in `columns`, which are blank, who is eligible, and what the others' labels cost.
    pub(super) fn mark(&self, fleet: &Fleet, columns: &mut Columns) {
        let Columns { eligible, lacking_s, .. } = columns;
        let ranks = |instances: &'a [InstanceId]| instances.iter().flat_map(|id| fleet.ranks(*id));
        match (self.pinned, self.only) {
            (Some(worker), only) if only.is_none_or(|only| only.contains(&worker.instance)) => {
                let found = fleet.find(worker);
                found.into_iter().for_each(|position| set(eligible, position, true));
            }
            (Some(_), _) => {}
            (None, Some(only)) => ranks(only).for_each(|position| set(eligible, position, true)),
            (None, None) => set_all(eligible, fleet.seats().len()),
        }
        ranks(self.exclude).for_each(|position| set(eligible, position, false));
        for (label, value) in self.required {
            let mut labelled = fleet.labelled(label, value).iter();
            eligible.iter_mut().for_each(|word| *word &= labelled.next().copied().unwrap_or(0));
        }
        for Preference { label, value, seconds } in self.preferred {
            let labelled = fleet.labelled(label, value);
            let lacking = lacking_s.iter_mut().enumerate();
            lacking
                .filter(|(position, _)| !is_in(labelled, *position))
                .for_each(|(_, lacking_s)| *lacking_s += seconds.max(0.0));
        }
    }

    /// Leaves out whom to avoid, but for `pinned`, if anybody else is eligible.
    pub(super) fn avoid(&self, fleet: &Fleet, pinned: Option<usize>, eligible: &mut [u64]) {
        let avoided = self.avoid.iter().filter_map(|worker| fleet.find(*worker));
        let avoided = avoided.filter(|position| pinned != Some(*position));
        let is_eligible = |eligible: &[u64], at: &usize| is_in(eligible, *at);
        let count = eligible.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        let of_them = avoided.clone().filter(|position| is_eligible(eligible, position)).count();
        if of_them < count {
            avoided.for_each(|position| set(eligible, position, false));
        }
    }
}

fn set(eligible: &mut [u64], position: usize, may: bool) {
    let bit = 1 << (position % 64);
    let word = &mut eligible[position / 64];
    *word = if may { *word | bit } else { *word & !bit };
}

/// Sets the first `count` positions, for which there are just enough words.
fn set_all(eligible: &mut [u64], count: usize) {
    eligible.fill(u64::MAX);
    if let Some(last) = eligible.last_mut() {
        *last >>= (64 - count % 64) % 64;
    }
}

/// Says what is asked of workers, for an error.
impl fmt::Display for Constraints<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} are excluded", self.exclude.len())?;
        if let Some(only) = self.only {
            write!(f, ", only {} are allowed", only.len())?;
        }
        if let Some(worker) = self.pinned {
            write!(f, ", only {worker} would do")?;
        }
        self.required.iter().try_for_each(|(label, value)| write!(f, ", {label} must be {value}"))
    }
}
