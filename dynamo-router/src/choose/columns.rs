use super::cost::{CandidateCost, Cost, CostModel, Known, Work, cost};
use super::explain::Rivals;
use crate::load::{Booked, Claim, Load, Paced};
use crate::workers::{Fleet, Positions, Seat, is_in};

/// What is chosen among, and by what, at one moment.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) model: &'a CostModel,
    /// How fast the workers are together.
    pub(crate) paced: Paced,
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
    pub(crate) block_tokens: usize,
}

impl Asked {
    /// Returns what the request takes of a worker that has `cached_tokens` of it.
    pub(crate) fn claim(&self, cached_tokens: usize) -> Claim {
        let new_tokens = match self.work {
            Work::Full | Work::Prefill => self.prompt_tokens - cached_tokens,
            Work::Fetch => 0,
        };
        let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
        Claim { prefill_tokens: count(new_tokens), blocks: count(self.blocks) }
    }
}

/// What is known of each worker of a fleet for one choice: arrays by position.
///
/// Reused, so that a choice allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Who may be chosen.
    pub(crate) eligible: Positions,
    /// Prompt tokens that a worker has.
    pub(crate) cached_tokens: Vec<usize>,
    /// What it takes to bring up what a worker has below its fastest tier, in seconds.
    pub(crate) up_s: Vec<f64>,
    /// What the labels that a worker lacks cost, in seconds.
    pub(crate) lacking_s: Vec<f64>,
    pub(super) scores: Vec<Score>,
    /// For the pick: those that cost almost the same.
    pub(super) near: Vec<usize>,
}

/// What choosing a worker would cost, in seconds: endless for who may not be chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Score {
    pub(super) total_s: f64,
    pub(super) queue_s: f64,
    pub(super) ttft_s: f64,
    /// With what the labels cost that it lacks.
    pub(super) reach_s: f64,
    pub(super) is_idle: bool,
    /// What it was computed from.
    pub(super) booked: Booked,
}

impl Columns {
    /// Makes room for `count` workers, none of which may be chosen nor has anything.
    pub(crate) fn reset(&mut self, count: usize) {
        self.eligible.clear();
        self.eligible.resize(count.div_ceil(64), 0);
        self.cached_tokens.clear();
        self.cached_tokens.resize(count, 0);
        self.up_s.clear();
        self.up_s.resize(count, 0.0);
        self.lacking_s.clear();
        self.lacking_s.resize(count, 0.0);
        self.scores.clear();
    }

    /// Computes what each worker would cost.
    pub(crate) fn score(&mut self, view: &View<'_>, asked: &Asked) {
        let Self { eligible, cached_tokens, up_s, lacking_s, scores, .. } = self;
        let rows = view.fleet.seats().iter().zip(cached_tokens).zip(up_s.iter().zip(lacking_s));
        scores.extend(rows.enumerate().map(
            |(position, ((seat, cached_tokens), (up_s, lacking_s)))| match is_in(eligible, position)
            {
                true => score(view, asked, seat, (*cached_tokens, *up_s), *lacking_s),
                false => Score::NONE,
            },
        ));
    }

    /// Computes anew what the worker at `position`, who may be chosen, would cost.
    pub(crate) fn score_again(&mut self, view: &View<'_>, asked: &Asked, position: usize) {
        let seat = &view.fleet.seats()[position];
        let cached = (self.cached_tokens[position], self.up_s[position]);
        self.scores[position] = score(view, asked, seat, cached, self.lacking_s[position]);
    }

    /// Returns what was booked at `position` when it was scored.
    pub(crate) fn booked(&self, position: usize) -> Booked {
        self.scores[position].booked
    }

    /// Tells whether the worker at `position` may be chosen, and its queue is longer than the shortest
    /// one by `excess_max_s` at most.
    pub(crate) fn is_within(&self, position: usize, excess_max_s: f64) -> bool {
        let shortest = self.scores.iter().map(|score| score.queue_s).fold(f64::INFINITY, f64::min);
        let score = &self.scores[position];
        score.total_s.is_finite() && score.queue_s <= shortest + excess_max_s
    }

    /// Returns everything about the worker at `position`.
    pub(crate) fn candidate(
        &self,
        view: &View<'_>,
        asked: &Asked,
        position: usize,
    ) -> CandidateCost {
        let (seat, cached_tokens) = (&view.fleet.seats()[position], self.cached_tokens[position]);
        let cached = (cached_tokens, self.up_s[position]);
        let (load, Cost { queue_s, up_s, ttft_s, harm_s }) =
            cost_at(view, asked, seat, self.booked(position), cached);
        CandidateCost {
            worker: seat.worker(),
            cached_tokens,
            new_tokens: asked.prompt_tokens - cached_tokens,
            load,
            queue_s,
            up_s,
            ttft_s,
            harm_s,
            lacking_s: self.lacking_s[position],
        }
    }

    /// Returns everything about those that could have been chosen in the place of `chosen`.
    pub(crate) fn others(
        &self,
        view: &View<'_>,
        asked: &Asked,
        chosen: usize,
    ) -> Vec<CandidateCost> {
        let scores = self.scores.iter().enumerate();
        let others = scores.filter(|(at, score)| *at != chosen && score.total_s.is_finite());
        others.map(|(position, _)| self.candidate(view, asked, position)).collect()
    }

    /// Returns what there is to say of the others.
    pub(crate) fn rivals(&self, chosen: usize) -> Rivals {
        let mut rivals = Rivals::default();
        for ((at, score), cached_tokens) in self.scores.iter().enumerate().zip(&self.cached_tokens)
        {
            if at == chosen || score.total_s == f64::INFINITY {
                continue;
            }
            rivals.count += 1;
            if score.ttft_s < rivals.ttft_s {
                rivals.ttft_s = score.ttft_s;
            }
            let requests = usize::try_from(score.booked.requests()).unwrap_or(usize::MAX);
            rivals.requests = rivals.requests.max(requests);
            if *cached_tokens >= rivals.cached_tokens {
                (rivals.cached_tokens, rivals.holder_queue_s) = (*cached_tokens, score.queue_s);
            }
        }
        rivals
    }
}

impl Score {
    pub(super) const NONE: Self = Self {
        total_s: f64::INFINITY,
        queue_s: f64::INFINITY,
        ttft_s: f64::INFINITY,
        reach_s: f64::INFINITY,
        is_idle: false,
        booked: Booked::NOTHING,
    };
}

#[inline(always)]
fn score(
    view: &View<'_>,
    asked: &Asked,
    seat: &Seat,
    cached: (usize, f64),
    lacking_s: f64,
) -> Score {
    let booked = seat.load.booked();
    if booked.plus(asked.claim(cached.0)).is_none() {
        return Score::NONE;
    }
    let (load, cost) = cost_at(view, asked, seat, booked, cached);
    let total_s = cost.total_s(view.model) + lacking_s;
    let (Cost { queue_s, ttft_s, .. }, is_idle) =
        (cost, load.requests == 0 && booked.requests() == 0);
    Score { total_s, queue_s, ttft_s, reach_s: ttft_s + lacking_s, is_idle, booked }
}

/// Gathers what is known of a worker, on which `booked` is booked, and applies the formula.
#[inline(always)]
fn cost_at(
    view: &View<'_>,
    asked: &Asked,
    seat: &Seat,
    booked: Booked,
    (cached_tokens, up_s): (usize, f64),
) -> (Load, Cost) {
    let load = seat.load.load(booked, view.now, view.report_max_ns);
    let speed = &seat.load.speed;
    let known = Known {
        load,
        context_tokens: load.blocks.saturating_mul(asked.block_tokens),
        prefill_s_per_token: speed
            .among(view.paced.prefill)
            .unwrap_or(view.model.prefill_s_per_token),
        busy_s: if load.waiting() == 0 { 0.0 } else { speed.busy_s(view.now) },
        step_s_per_token: view.paced.step_s_per_token,
        output_tokens: view.paced.output_tokens,
        up_s,
    };
    let tokens = (cached_tokens, asked.prompt_tokens - cached_tokens);
    (load, cost(view.model, &known, tokens, asked.work))
}
