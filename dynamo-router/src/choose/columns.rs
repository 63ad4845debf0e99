use super::cost::{CandidateCost, Cost, CostModel, Formula, Known, Work, lesser, single};
use super::explain::Rivals;
use crate::index::Matches;
use crate::load::{Booked, Claim, Load, Paced, ROWS, Seen};
use crate::workers::{Fleet, Positions, Seat};

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

/// What is known of each worker of a fleet for one choice.
///
/// Reused, so that a choice allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Who may be chosen.
    pub(crate) eligible: Positions,
    /// Sixty-four positions each.
    pub(super) sheets: Vec<Sheet>,
    /// For the pick: those that cost almost the same.
    pub(super) near: Vec<usize>,
}

/// What is known of some workers and what choosing them would cost: arrays by position, so that many
/// are computed at once.
#[derive(Debug)]
pub(super) struct Sheet {
    /// Whether nobody behind the first [`FEW`] may be chosen, and nothing behind them is looked at.
    is_short: bool,
    /// Blocks of the prompt that a worker has.
    pub(super) depths: [u32; ROWS],
    /// What it takes to bring up what a worker has below its fastest tier, in seconds.
    up_s: [f32; ROWS],
    /// What the labels that a worker lacks cost, in seconds.
    pub(super) lacking_s: [f32; ROWS],
    pub(super) seen: Seen,
    /// The cost, in seconds: endless for who may not be chosen.
    pub(super) total_s: [f32; ROWS],
    pub(super) ttft_s: [f32; ROWS],
    queue_s: [f32; ROWS],
}

impl Columns {
    /// Makes room for `fleet`, of which each has what `matches` says; who may be chosen is left to say.
    pub(crate) fn reset(&mut self, fleet: &Fleet, matches: &Matches) {
        self.sheets.resize_with(fleet.chunks().len(), Sheet::default);
        let sheets = self.sheets.iter_mut().zip(fleet.everyone()).enumerate();
        for (nth, (sheet, everyone)) in sheets {
            matches.depths(nth * ROWS, &mut sheet.depths[..end_of(*everyone)]);
            (sheet.up_s, sheet.lacking_s) = ([0.0; ROWS], [0.0; ROWS]);
        }
    }

    /// Says what it takes to bring up what the worker at `position` has below its fastest tier.
    pub(crate) fn bring_up(&mut self, position: usize, up_s: f32) {
        if let Some(sheet) = self.sheets.get_mut(position / ROWS) {
            sheet.up_s[position % ROWS] = up_s;
        }
    }

    /// Lets those that are not `labelled` cost `seconds` more.
    pub(crate) fn lack(&mut self, labelled: &[u64], seconds: f64) {
        for (nth, sheet) in self.sheets.iter_mut().enumerate() {
            let labelled = labelled.get(nth).copied().unwrap_or(0);
            for (at, lacking_s) in sheet.lacking_s.iter_mut().enumerate() {
                *lacking_s += if labelled >> at & 1 == 0 { single(seconds) } else { 0.0 };
            }
        }
    }

    /// Takes from what the labels cost that workers lack what all who may be chosen have in common.
    pub(crate) fn level(&mut self) {
        let Self { eligible, sheets, .. } = self;
        let eligible = |nth: usize| eligible.get(nth).copied().unwrap_or(0);
        let mut common_s = f32::INFINITY;
        for (nth, sheet) in sheets.iter().enumerate() {
            let may = |at: &usize| eligible(nth) >> at & 1 == 1;
            let lacking_s = (0..ROWS).filter(may).map(|at| sheet.lacking_s[at]);
            common_s = lacking_s.fold(common_s, lesser);
        }
        let all = sheets.iter_mut().flat_map(|sheet| &mut sheet.lacking_s);
        all.for_each(|lacking_s| *lacking_s -= common_s);
    }

    /// Computes what each worker would cost.
    pub(crate) fn score(&mut self, view: &View<'_>, asked: &Asked) {
        let formula = Formula::new(view.model, &view.paced, asked);
        let chunks = view.fleet.chunks().iter().zip(&self.eligible);
        for (sheet, (chunk, eligible)) in self.sheets.iter_mut().zip(chunks) {
            let count = end_of(*eligible);
            sheet.is_short = count <= FEW;
            if let Some(chunk) = chunk {
                chunk.see(count, view.now, view.report_max_ns, &mut sheet.seen);
            }
            sheet.score(&formula, count);
            sheet.leave_out(!eligible, count);
        }
    }

    /// Computes anew what the worker at `position`, who may be chosen, would cost: without end if it
    /// cannot count one more request.
    pub(crate) fn score_again(&mut self, view: &View<'_>, asked: &Asked, position: usize) {
        let (cached_tokens, at) = (self.cached_tokens(asked, position), position % ROWS);
        let Some(seat) = view.fleet.seat(position) else { return };
        let sheet = &mut self.sheets[position / ROWS];
        let booked = seat.load.booked();
        sheet.seen.booked[at] = booked;
        sheet.seen.set_load(at, &seat.load.load(booked, view.now, view.report_max_ns));
        sheet.set(at, &Formula::new(view.model, &view.paced, asked));
        if booked.plus(asked.claim(cached_tokens)).is_none() {
            sheet.leave_out(1 << at, sheet.end());
        }
    }

    /// Returns what was booked at `position` when it was scored.
    pub(crate) fn booked(&self, position: usize) -> Booked {
        self.sheets[position / ROWS].seen.booked[position % ROWS]
    }

    fn cached_tokens(&self, asked: &Asked, position: usize) -> usize {
        let depth = self.sheets[position / ROWS].depths[position % ROWS] as usize;
        (depth * asked.block_tokens).min(asked.reusable_tokens)
    }

    /// Tells whether the worker at `position` may be chosen, and its queue is longer than the shortest
    /// one by `excess_max_s` at most.
    pub(crate) fn is_within(&self, position: usize, excess_max_s: f64) -> bool {
        let shortest = least(&self.sheets, |sheet, at| sheet.queue_s[at]);
        let (sheet, at) = (&self.sheets[position / ROWS], position % ROWS);
        let latest = f64::from(shortest) + excess_max_s;
        sheet.total_s[at].is_finite() && f64::from(sheet.queue_s[at]) <= latest
    }

    /// Returns everything about the worker at `position`, which has `seat`.
    pub(crate) fn candidate(
        &self,
        view: &View<'_>,
        asked: &Asked,
        seat: &Seat,
        position: usize,
    ) -> CandidateCost {
        let (sheet, at) = (&self.sheets[position / ROWS], position % ROWS);
        let formula = Formula::new(view.model, &view.paced, asked);
        let Cost { queue_s, up_s, ttft_s, harm_s } = formula.cost(&sheet.known(at));
        let cached_tokens = self.cached_tokens(asked, position);
        let load: Load = seat.load.load(sheet.seen.booked[at], view.now, view.report_max_ns);
        CandidateCost {
            worker: seat.worker(),
            cached_tokens,
            new_tokens: asked.prompt_tokens - cached_tokens,
            load,
            queue_s: queue_s.into(),
            up_s: up_s.into(),
            ttft_s: ttft_s.into(),
            harm_s: harm_s.into(),
            lacking_s: sheet.lacking_s[at].into(),
        }
    }

    /// Returns everything about those that could have been chosen in the place of `chosen`.
    pub(crate) fn others(
        &self,
        view: &View<'_>,
        asked: &Asked,
        chosen: usize,
    ) -> Vec<CandidateCost> {
        let places = self.sheets.iter().enumerate().flat_map(|(nth, sheet)| {
            let costs = sheet.total_s[..sheet.end()].iter().enumerate();
            let eligible = costs.filter(|(_, total_s)| total_s.is_finite());
            eligible.map(move |(at, _)| nth * ROWS + at)
        });
        let others = places.filter(|position| *position != chosen);
        let seats = others.filter_map(|at| Some((at, view.fleet.seat(at)?)));
        seats.map(|(at, seat)| self.candidate(view, asked, seat, at)).collect()
    }

    /// Returns what there is to say of the others.
    pub(crate) fn rivals(&mut self, asked: &Asked, chosen: usize) -> Rivals {
        let (nth, at) = (chosen / ROWS, chosen % ROWS);
        let total_s = std::mem::replace(&mut self.sheets[nth].total_s[at], f32::INFINITY);
        let rivals = rivals(&self.sheets, asked);
        self.sheets[nth].total_s[at] = total_s;
        rivals
    }
}

/// Returns what there is to say of all that may be chosen.
fn rivals(sheets: &[Sheet], asked: &Asked) -> Rivals {
    let among = |sheet: &Sheet, at: usize, value: f32| {
        if sheet.total_s[at] < f32::INFINITY { value } else { f32::INFINITY }
    };
    let depth = |sheet: &Sheet, at: usize| among(sheet, at, -single(sheet.depths[at].into()));
    let deepest = least(sheets, depth);
    let is_holder = |sheet: &Sheet| (0..sheet.end()).rfind(|at| depth(sheet, *at) == deepest);
    let Some((holder, at)) = sheets.iter().rev().find_map(|sheet| Some((sheet, is_holder(sheet)?)))
    else {
        return Rivals::default();
    };
    if deepest == f32::INFINITY {
        return Rivals::default();
    }
    let requests = least(sheets, |sheet, at| among(sheet, at, -sheet.seen.requests[at]));
    let cached_tokens = holder.depths[at] as usize * asked.block_tokens;
    Rivals {
        count: sheets.iter().map(Sheet::count).sum(),
        ttft_s: least(sheets, |sheet, at| among(sheet, at, sheet.ttft_s[at])).into(),
        cached_tokens: cached_tokens.min(asked.reusable_tokens),
        holder_queue_s: holder.queue_s[at].into(),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        requests: -requests as usize,
    }
}

impl Default for Sheet {
    fn default() -> Self {
        let (none, endless) = ([0.0; ROWS], [f32::INFINITY; ROWS]);
        Self {
            is_short: false,
            depths: [0; ROWS],
            up_s: none,
            lacking_s: none,
            seen: Seen::default(),
            total_s: endless,
            ttft_s: endless,
            queue_s: endless,
        }
    }
}

impl Sheet {
    /// Returns where those end that are looked at.
    #[inline(always)]
    pub(super) fn end(&self) -> usize {
        if self.is_short { FEW } else { ROWS }
    }

    /// Computes what the first `count` would cost.
    #[inline(never)]
    fn score(&mut self, formula: &Formula, count: usize) {
        for at in 0..count.min(ROWS) {
            self.set(at, formula);
        }
    }

    #[inline(always)]
    pub(super) fn set(&mut self, at: usize, formula: &Formula) {
        let cost = formula.cost(&self.known(at));
        self.total_s[at] = formula.total_s(&cost) + self.lacking_s[at];
        self.ttft_s[at] = cost.ttft_s;
        self.queue_s[at] = cost.queue_s;
    }

    #[inline(always)]
    fn known(&self, at: usize) -> Known {
        let seen = &self.seen;
        Known {
            requests: seen.requests[at],
            decoding: seen.decoding[at],
            prefill_tokens: seen.prefill_tokens[at],
            blocks: seen.blocks[at],
            took_tokens: seen.took_tokens[at],
            took_s: seen.took_s[at],
            busy_s: seen.busy_s[at],
            depth: self.depths[at],
            up_s: self.up_s[at],
        }
    }

    /// Leaves `out` those of the first `count`, and all behind them.
    pub(super) fn leave_out(&mut self, out: u64, count: usize) {
        let end = self.end();
        let mut out = if count < ROWS { out & ((1 << count) - 1) } else { out };
        while out != 0 {
            let at = out.trailing_zeros() as usize;
            out &= out - 1;
            for costs in [&mut self.total_s, &mut self.ttft_s, &mut self.queue_s] {
                costs[at] = f32::INFINITY;
            }
        }
        for costs in [&mut self.total_s, &mut self.ttft_s, &mut self.queue_s] {
            costs[count.min(end)..end].fill(f32::INFINITY);
        }
    }

    /// Returns how many may be chosen.
    fn count(&self) -> usize {
        let total_s = &self.total_s[..self.end()];
        total_s.iter().map(|total_s| usize::from(*total_s < f32::INFINITY)).sum()
    }

    /// Tells whether nothing is there that a request would wait for.
    #[inline(always)]
    pub(super) fn is_idle(&self, at: usize) -> bool {
        self.seen.requests[at] == 0.0
    }
}

/// Returns the least of the times `of` all workers: eight at once, for each comparison waits for the
/// one before it.
#[inline(always)]
pub(super) fn least(sheets: &[Sheet], of: impl Fn(&Sheet, usize) -> f32) -> f32 {
    let mut lanes = [f32::INFINITY; EIGHT];
    for sheet in sheets {
        // Of a length that is known beforehand no step is counted.
        match sheet.is_short {
            true => lower::<FEW>(&mut lanes, sheet, &of),
            false => lower::<ROWS>(&mut lanes, sheet, &of),
        }
    }
    lanes.into_iter().fold(f32::INFINITY, lesser)
}

/// Lowers `lanes` to the times `of` the first workers of a sheet.
#[inline(always)]
fn lower<const COUNT: usize>(
    lanes: &mut [f32; EIGHT],
    sheet: &Sheet,
    of: &impl Fn(&Sheet, usize) -> f32,
) {
    for first in (0..COUNT).step_by(EIGHT) {
        for (nth, lane) in lanes.iter_mut().enumerate() {
            *lane = lesser(*lane, of(sheet, first + nth));
        }
    }
}

/// Returns the position behind the last of `set`, or a few more: eight are computed as fast as one.
fn end_of(set: u64) -> usize {
    (64 - set.leading_zeros() as usize).next_multiple_of(EIGHT)
}

const EIGHT: usize = 8;
/// The sheet of a small fleet is looked at in a quarter of the time.
const FEW: usize = 16;
