use super::cost::{CandidateCost, Cost, CostModel, Work, cost};
use super::explain::Rivals;
use super::speed::Speed;
use crate::load::{Booked, Claim, Load};
use crate::workers::{Fleet, Positions, is_in};

/// What is chosen among, and by what, at one moment.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) model: &'a CostModel,
    /// What all workers have shown: stands in for one that has shown nothing yet.
    pub(crate) pool_speed: &'a Speed,
    pub(crate) report_max_ns: u64,
    pub(crate) now: u64,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) work: Work,
    pub(crate) prompt_tokens: usize,
    /// How many tokens of the prompt a cache can spare at most.
    pub(crate) reusable_tokens: usize,
    /// KV blocks that the prompt takes.
    pub(crate) blocks: usize,
}

impl Asked {
    /// Returns what the request takes of a worker that has `cached_tokens` of it.
    pub(crate) fn claim(&self, cached_tokens: usize) -> Claim {
        let new_tokens = match self.work {
            Work::Prefill => self.prompt_tokens - cached_tokens,
            Work::Fetch => 0,
        };
        let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
        Claim { prefill_tokens: count(new_tokens), blocks: count(self.blocks) }
    }
}

/// What is known of each worker of a fleet for one choice: an array per property, by position.
///
/// Reused, so that a choice allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Who may be chosen.
    pub(crate) eligible: Positions,
    /// Prompt tokens that a worker has.
    pub(crate) cached_tokens: Vec<usize>,
    /// What the labels that it lacks cost, in seconds.
    pub(crate) lacking_s: Vec<f64>,
    booked: Vec<Booked>,
    /// Endless for who may not be chosen, as are the other times.
    pub(super) queue_s: Vec<f64>,
    ttft_s: Vec<f64>,
    pub(super) total_s: Vec<f64>,
}

impl Columns {
    /// Makes room for `count` workers, none of which may be chosen nor has anything.
    pub(crate) fn reset(&mut self, count: usize) {
        self.eligible.clear();
        self.eligible.resize(count.div_ceil(64), 0);
        self.cached_tokens.clear();
        self.cached_tokens.resize(count, 0);
        self.booked.clear();
        self.booked.resize(count, Booked::default());
        for times in [&mut self.lacking_s, &mut self.queue_s, &mut self.ttft_s, &mut self.total_s] {
            times.clear();
            times.resize(count, 0.0);
        }
    }

    /// Computes what each worker would cost.
    pub(crate) fn score(&mut self, view: &View<'_>, asked: &Asked) {
        (0..view.fleet.seats().len()).for_each(|position| self.score_one(view, asked, position));
    }

    /// Computes what the worker at `position` would cost, by what is booked there now.
    pub(crate) fn score_one(&mut self, view: &View<'_>, asked: &Asked, position: usize) {
        let seat = &view.fleet.seats()[position];
        let booked = seat.load.booked();
        let has_room = booked.plus(asked.claim(self.cached_tokens[position])).is_some();
        self.booked[position] = booked;
        if !has_room || !is_in(&self.eligible, position) {
            for times in [&mut self.queue_s, &mut self.ttft_s, &mut self.total_s] {
                times[position] = f64::INFINITY;
            }
            return;
        }
        let (_, cost) = self.cost(view, asked, position);
        self.queue_s[position] = cost.queue_s;
        self.ttft_s[position] = cost.ttft_s;
        self.total_s[position] = cost.total_s(view.model) + self.lacking_s[position];
    }

    fn cost(&self, view: &View<'_>, asked: &Asked, position: usize) -> (Load, Cost) {
        let seat = &view.fleet.seats()[position];
        let load = seat.load.load(self.booked[position], view.now, view.report_max_ns);
        let shown = seat.speed.prefill_s_per_token();
        let shown = shown.or_else(|| view.pool_speed.prefill_s_per_token());
        let prefill_s_per_token = shown.unwrap_or(view.model.prefill_s_per_token);
        let new_tokens = asked.prompt_tokens - self.cached_tokens[position];
        (load, cost(view.model, prefill_s_per_token, &load, new_tokens, asked.work))
    }

    /// Returns what was booked at `position` when it was scored.
    pub(crate) fn booked(&self, position: usize) -> Booked {
        self.booked[position]
    }

    /// Returns everything about the worker at `position`.
    pub(crate) fn candidate(
        &self,
        view: &View<'_>,
        asked: &Asked,
        position: usize,
    ) -> CandidateCost {
        let (load, Cost { queue_s, ttft_s, harm_s }) = self.cost(view, asked, position);
        let cached_tokens = self.cached_tokens[position];
        CandidateCost {
            worker: view.fleet.seats()[position].worker(),
            cached_tokens,
            new_tokens: asked.prompt_tokens - cached_tokens,
            load,
            queue_s,
            ttft_s,
            harm_s,
            lacking_s: self.lacking_s[position],
        }
    }

    /// Returns the positions that could have been chosen in the place of `chosen`.
    pub(crate) fn others(&self, chosen: usize) -> impl Iterator<Item = usize> + '_ {
        let is_other = move |at: &usize| *at != chosen && self.total_s[*at].is_finite();
        (0..self.total_s.len()).filter(is_other)
    }

    /// Returns what there is to say of the others.
    pub(crate) fn rivals(&self, chosen: usize) -> Rivals {
        let mut rivals = Rivals::default();
        for at in self.others(chosen) {
            rivals.count += 1;
            rivals.ttft_s = rivals.ttft_s.min(self.ttft_s[at]);
            let requests = usize::try_from(self.booked[at].requests()).unwrap_or(usize::MAX);
            rivals.requests = rivals.requests.max(requests);
            if self.cached_tokens[at] >= rivals.cached_tokens {
                rivals.cached_tokens = self.cached_tokens[at];
                rivals.holder_queue_s = self.queue_s[at];
            }
        }
        rivals
    }
}
