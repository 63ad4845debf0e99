use std::fmt;

use dynamo_core::Priority;
use dynamo_core::protocol::{InstanceId, WorkerId};

use super::config::SECONDS_MAX;
use crate::choose::{Columns, SessionKey};
use crate::workers::{Fleet, Positions};

/// Where a request may go, by default anywhere, and how urgent it is. Borrows all it says, so that it costs nothing to
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
    /// [`RouterConfig::affinity`](crate::RouterConfig::affinity) says. A request that may not go
    /// there goes elsewhere, and the session stays.
    pub session: Option<SessionKey>,
    /// Only where each of these labels has its value.
    pub required: &'a [(&'a str, &'a str)],
    /// Rather where these labels have their values.
    pub preferred: &'a [Preference<'a>],
    /// How urgent the request is: the more, the less does it count whom it delays
    /// ([`CostModel::for_priority`](crate::CostModel::for_priority)).
    pub priority: Priority,
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
    /// zone, say. Less than 0, and what is no number, counts as 0, and more than 10^9 as that. Where
    /// nobody who may be chosen has the label's value it makes no difference.
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

    /// Says how urgent the request is.
    #[must_use]
    pub const fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Marks in `columns`, which are blank, who is eligible, and what the others' labels cost.
    pub(super) fn mark(&self, fleet: &Fleet, columns: &mut Columns) {
        self.admit(fleet, &mut columns.eligible);
        for Preference { label, value, seconds } in self.preferred {
            columns.lack(fleet.labelled(label, value), bounded_s(*seconds));
        }
    }

    /// Marks in `eligible`, which is made blank, who is, whomever to avoid.
    pub(super) fn admit(&self, fleet: &Fleet, eligible: &mut Positions) {
        eligible.clear();
        eligible.resize(fleet.chunks().len(), 0);
        let ranks = |instances: &'a [InstanceId]| instances.iter().flat_map(|id| fleet.ranks(*id));
        match (self.pinned, self.only) {
            (Some(worker), only) if only.is_none_or(|only| only.contains(&worker.instance)) => {
                let found = fleet.find(worker);
                found.into_iter().for_each(|position| set(eligible, position, true));
            }
            (Some(_), _) => {}
            (None, Some(only)) => ranks(only).for_each(|position| set(eligible, position, true)),
            (None, None) => eligible.copy_from_slice(fleet.everyone()),
        }
        ranks(self.exclude).for_each(|position| set(eligible, position, false));
        for (label, value) in self.required {
            let mut labelled = fleet.labelled(label, value).iter();
            eligible.iter_mut().for_each(|word| *word &= labelled.next().copied().unwrap_or(0));
        }
    }

    /// Leaves out whom to avoid, but for `pinned`, if anybody else is eligible; `avoided` is room for
    /// who that is.
    pub(super) fn avoid(
        &self,
        fleet: &Fleet,
        pinned: Option<usize>,
        eligible: &mut [u64],
        avoided: &mut Positions,
    ) {
        if self.avoid.is_empty() {
            return;
        }
        avoided.clear();
        avoided.resize(eligible.len(), 0);
        let found = self.avoid.iter().filter_map(|worker| fleet.find(*worker));
        found.for_each(|position| set(avoided, position, true));
        pinned.into_iter().for_each(|position| set(avoided, position, false));
        if eligible.iter().zip(&*avoided).any(|(eligible, avoided)| eligible & !avoided != 0) {
            let both = eligible.iter_mut().zip(avoided);
            both.for_each(|(eligible, avoided)| *eligible &= !*avoided);
        }
    }

    /// Leaves of what labels cost what tells those who are eligible from each other: what all of them
    /// lack would make all else look the same.
    pub(super) fn level(&self, columns: &mut Columns) {
        if self.preferred.is_empty() {
            return;
        }
        columns.level();
    }
}

fn bounded_s(seconds: f64) -> f64 {
    if seconds.is_nan() { 0.0 } else { seconds.clamp(0.0, SECONDS_MAX) }
}

fn set(eligible: &mut [u64], position: usize, may: bool) {
    let bit = 1 << (position % 64);
    let word = &mut eligible[position / 64];
    *word = if may { *word | bit } else { *word & !bit };
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
