//! One choice: find, filter, score, pick, reserve.

use std::sync::atomic::Ordering;

use dynamo_core::protocol::{GenerateRequest, Stage, WorkerId};
use dynamo_core::random::Random;
use dynamo_core::{Error, ErrorKind, Result};

use super::scratch::Scratch;
use super::{Constraints, KvRouter};
use crate::choose::{Asked, RouteExplain, SessionKey, Stickiness, View, Work, pick};
use crate::load::Booking;
use crate::workers::{Fleet, is_in};

/// Where a request goes, and why.
#[derive(Debug)]
#[must_use = "dropping the decision releases the booking"]
pub struct Decision {
    /// The chosen worker.
    pub worker: WorkerId,
    /// Prompt tokens that the worker is expected to have cached.
    pub cached_tokens: usize,
    /// Those of them that the worker has said it has; the rest was sent there a moment ago.
    pub indexed_tokens: usize,
    /// The costs that led there.
    pub explain: RouteExplain,
    /// The load booked on the worker; keep it in the response stream.
    pub booking: Booking,
    /// Prompt tokens that the worker has to prefill.
    pub(super) prefill_tokens: usize,
    /// Where the session of the request stays, though the request itself could not go there.
    home: Option<WorkerId>,
}

impl KvRouter {
    /// Chooses a worker of `fleet`.
    pub(super) fn choose(
        &self,
        fleet: &Fleet,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        let now = self.tend();
        let model = self.0.cost.for_priority(constraints.priority);
        let view = View {
            fleet,
            model: &self.0.fetch.applied(&model, request, self.0.common.at(now)),
            paced: self.0.common.pace.get(),
            report_max_ns: self.0.report_max_ns,
            now,
        };
        let asked = asked(request);
        self.0.scratches.lend(|scratch| {
            self.find(request, view.now, scratch);
            let Scratch { matches, columns, avoided, .. } = scratch;
            columns.reset(fleet, matches);
            if matches.is_tiered() {
                for (slot, _) in matches.iter() {
                    let up_s = self.0.cost.up_s(matches.tiers(slot), asked.block_tokens);
                    columns.bring_up(slot.index(), up_s);
                }
            }
            constraints.mark(fleet, columns);
            let home = self.home(fleet, constraints);
            let open = home.and_then(|(home, stickiness)| {
                let found = fleet.find(home).filter(|at| is_in(&columns.eligible, *at));
                found.map(|position| (position, stickiness))
            });
            let pinned = open.filter(|(_, stickiness)| *stickiness == Stickiness::Hard);
            let pinned = pinned.map(|(position, _)| position);
            constraints.avoid(fleet, pinned, &mut columns.eligible, avoided);
            constraints.level(columns);
            columns.score(&view, &asked);
            let kept = open
                .filter(|(position, firm)| columns.is_within(*position, firm.excess_max_s()))
                .map(|(position, _)| position);
            let mut decision = self
                .reserve(&view, &asked, scratch, kept)
                .ok_or_else(|| refusal(fleet, constraints, &scratch.columns.eligible))?;
            decision.home = home.filter(|_| open.is_none()).map(|(worker, _)| worker);
            Ok(decision)
        })
    }

    /// Takes note that a request goes where it was decided.
    pub(crate) fn sent(
        &self,
        request: &GenerateRequest,
        session: Option<SessionKey>,
        decision: &Decision,
    ) {
        let (common, slot) = (&self.0.common, decision.booking.seat().slot());
        let (now, hashes) = (common.clock.now(), request.blocks.sequence());
        if let Some(session) = session {
            self.affinity().bind(session, decision.home.unwrap_or(decision.worker), now);
        }
        common.expected.note(hashes, slot, now);
    }

    /// Takes note that the worker of `decision` has refused the request before it began: what was
    /// sent there is not expected to be there.
    ///
    /// To be called by whoever sends requests, with the decision by which one was sent.
    pub fn refused(&self, request: &GenerateRequest, decision: &Decision) {
        let depth = decision.cached_tokens.div_ceil(request.blocks.block_size().tokens());
        let (hashes, slot) = (request.blocks.sequence(), decision.booking.seat().slot());
        self.0.common.expected.withdraw(hashes, depth, slot);
    }

    /// Finds who holds how much of a prompt, and who is expected to.
    pub(super) fn find(&self, request: &GenerateRequest, now: u64, scratch: &mut Scratch) {
        let Scratch { matches, sent, .. } = scratch;
        let (common, hashes) = (&self.0.common, request.blocks.sequence());
        self.0.index.find(hashes, matches);
        common.expected.expect(hashes, common.at(now), sent, matches);
    }

    /// Returns the worker that had the request's session last, unless it is gone, and how firmly the
    /// session stays with it.
    pub(super) fn home(
        &self,
        fleet: &Fleet,
        constraints: &Constraints<'_>,
    ) -> Option<(WorkerId, Stickiness)> {
        let session = constraints.session?;
        let mut affinity = self.affinity();
        let now = self.0.common.clock.now();
        // Who is not listed may be back: who tries another worker leaves out those that failed.
        let is_known = |worker| self.members().get(worker).is_some();
        let is_there = |worker| fleet.find(worker).is_some() || is_known(worker);
        let worker = affinity.find(session, now, is_there)?;
        Some((worker, affinity.stickiness()))
    }

    /// Books where the session is kept, else picks the best and books there, or the best again if another
    /// choice was faster.
    fn reserve(
        &self,
        view: &View<'_>,
        asked: &Asked,
        scratch: &mut Scratch,
        kept: Option<usize>,
    ) -> Option<Decision> {
        let Scratch { matches, columns, .. } = scratch;
        let random = || Random::new(self.0.random.fetch_add(RANDOM_STEP, Ordering::Relaxed));
        for turn in 0..TURNS_MAX {
            let position = match kept.filter(|kept| columns.is_within(*kept, f64::INFINITY)) {
                Some(kept) => kept,
                None => pick(view.model, columns, random)?,
            };
            let seat = view.fleet.seat(position)?;
            let chosen = columns.candidate(view, asked, seat, position);
            let claim = asked.claim(chosen.cached_tokens);
            let is_reserved = match turn < CONFLICTS_MAX {
                true => seat.load.reserve(columns.booked(position), claim).is_ok(),
                false => seat.load.reserve_anyway(claim),
            };
            if !is_reserved {
                columns.score_again(view, asked, position);
                continue;
            }
            if columns.booked(position).waiting() == 0 {
                seat.load.began(view.now);
            }
            seat.common().booked(chosen.worker);
            let others = match self.0.is_explained {
                true => columns.others(view, asked, position),
                false => Vec::new(),
            };
            let rivals = columns.rivals(asked, position);
            let indexed = matches.indexed(seat.slot()) * asked.block_tokens;
            let prompt_tokens = asked.prompt_tokens;
            return Some(Decision {
                worker: chosen.worker,
                cached_tokens: chosen.cached_tokens,
                indexed_tokens: indexed.min(chosen.cached_tokens),
                explain: RouteExplain { prompt_tokens, chosen, rivals, others },
                booking: Booking::new(seat, claim, asked.block_tokens, view.now),
                prefill_tokens: claim.prefill_tokens as usize,
                home: None,
            });
        }
        None
    }
}

fn asked(request: &GenerateRequest) -> Asked {
    let prompt_tokens = request.token_ids.len();
    let block_size = request.blocks.block_size();
    let work = match request.stage {
        Stage::Full => Work::Full,
        Stage::Prefill => Work::Prefill,
        Stage::Decode { .. } => Work::Fetch,
    };
    // The last token is always computed: its logits are what the answer starts from.
    let block_tokens = block_size.tokens();
    let reusable_tokens = match work {
        Work::Full | Work::Prefill => prompt_tokens.saturating_sub(1) / block_tokens * block_tokens,
        Work::Fetch => prompt_tokens,
    };
    let blocks = block_size.blocks_for(prompt_tokens);
    Asked { work, prompt_tokens, reusable_tokens, blocks, block_tokens }
}

/// Says why there was nobody to choose.
fn refusal(fleet: &Fleet, constraints: &Constraints<'_>, eligible: &[u64]) -> Error {
    let count = fleet.count();
    let (kind, why) = match eligible.iter().any(|word| *word != 0) {
        true => (ErrorKind::Overloaded, "has room to count one more request"),
        false => (ErrorKind::Unavailable, "is left"),
    };
    Error::new(kind, format!("none of {count} workers {why}: {constraints}")).unprocessed()
}

/// Choices that were overtaken as often as this book without looking again.
const CONFLICTS_MAX: usize = 4;
/// After that only who has no room to count a request refuses it, and is left out.
const TURNS_MAX: usize = 64;
/// Odd, so that no state comes twice.
const RANDOM_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
