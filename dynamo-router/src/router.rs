//! The router: its body reads as the recipe.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::protocol::{
    GenerateRequest, InstanceId, KvChange, KvEvent, SequenceHash, Stage, WorkerId,
};
use dynamo_core::random::Random;
use dynamo_core::time::Clock;
use dynamo_core::{Context, Error, ErrorKind, Instance, Pick, Picker, Result};

use crate::choose::{CostModel, Rates, RouteExplain, Work, cost, pick};
use crate::events::{Sequencer, Verdict};
use crate::index::{Matches, PrefixIndex, PrefixReader};
use crate::load::{Booking, Ledger, Load};
use crate::workers::Workers;

/// How a router chooses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouterConfig {
    /// The coefficients of the cost.
    pub cost: CostModel,
    /// Decides among workers that cost the same; the same seed gives the same choices.
    pub seed: u64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self { cost: CostModel::default(), seed: 0x5eed }
    }
}

impl RouterConfig {
    /// Weighs costs by `cost`.
    #[must_use]
    pub fn with_cost(mut self, cost: CostModel) -> Self {
        self.cost = cost;
        self
    }

    /// Decides ties by `seed`.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// Chooses the worker on which a request costs least time; cheap to clone.
///
/// Fed by KV events ([`apply`](Self::apply)) and by its own bookings. Everything is synchronous;
/// no call waits for anything but a short lock.
#[derive(Clone)]
pub struct KvRouter {
    state: Arc<Mutex<State>>,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    cost: CostModel,
}

struct State {
    workers: Workers,
    index: PrefixIndex,
    reader: PrefixReader,
    sequencers: HashMap<WorkerId, Sequencer>,
    rates: HashMap<WorkerId, Rates>,
    /// What all workers have shown: stands in for one that has shown nothing yet.
    pool_rates: Rates,
    /// The instances of the last list of candidates.
    listed: BTreeSet<InstanceId>,
    /// Instances something is known of that are not listed, and since when.
    absent_since: HashMap<InstanceId, Instant>,
    matches: Matches,
    /// The hashes of the event that is applied.
    hashes: Vec<SequenceHash>,
    random: Random,
    events_total: u64,
    gaps_total: u64,
}

/// Where a request goes, and why.
#[derive(Debug)]
#[must_use = "dropping the decision releases the booking"]
pub struct Decision {
    /// The chosen worker.
    pub worker: WorkerId,
    /// Prompt tokens that the worker is expected to have cached.
    pub cached_tokens: usize,
    /// The costs that led there.
    pub explain: RouteExplain,
    /// The load booked on the worker; keep it in the response stream.
    pub booking: Booking,
    /// When the choice was made, and the tokens that stood before the first token then.
    pub(crate) booked: (Instant, usize),
}

/// What a router holds at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouterStats {
    /// Requests booked whose stream has not ended.
    pub bookings: usize,
    /// Different blocks in the index.
    pub indexed_blocks: usize,
    /// Events of workers taken in, so far.
    pub events_total: u64,
    /// Times events of a worker were lost, so far.
    pub gaps_total: u64,
}

impl KvRouter {
    /// Creates a router that knows nothing yet.
    pub fn new(config: RouterConfig, clock: Arc<dyn Clock>) -> Self {
        let index = PrefixIndex::default();
        let state = State {
            workers: Workers::default(),
            reader: index.reader(),
            index,
            sequencers: HashMap::new(),
            rates: HashMap::new(),
            pool_rates: Rates::default(),
            listed: BTreeSet::new(),
            absent_since: HashMap::new(),
            matches: Matches::default(),
            hashes: Vec::new(),
            random: Random::new(config.seed),
            events_total: 0,
            gaps_total: 0,
        };
        let state = Arc::new(Mutex::new(state));
        Self { state, ledger: Ledger::default(), clock, cost: config.cost }
    }

    /// Chooses among `candidates`, less the excluded, and books the request there.
    ///
    /// `candidates` are all the instances there are: what is known of one that stays missing from
    /// them for ten seconds is forgotten. What a request must avoid goes into `exclude`.
    ///
    /// Fails with a retryable [`Unavailable`](ErrorKind::Unavailable) if none is left.
    pub fn route(
        &self,
        request: &GenerateRequest,
        candidates: &[Instance],
        exclude: &[InstanceId],
    ) -> Result<Decision> {
        let mut state = self.lock();
        let state = &mut *state;
        state.forget_absent(candidates, self.clock.now());
        state.reader.find(request.blocks.sequence(), &mut state.matches);

        let block_tokens = request.blocks.block_size().tokens();
        let prompt_tokens = request.token_ids.len();
        let work =
            if matches!(request.stage, Stage::Decode { .. }) { Work::Fetch } else { Work::Prefill };
        // The last token is always computed: its logits are what the answer starts from.
        let reusable = match work {
            Work::Prefill => prompt_tokens.saturating_sub(1) / block_tokens * block_tokens,
            Work::Fetch => prompt_tokens,
        };
        let mut costs: Vec<_> = candidates
            .iter()
            .filter(|candidate| !exclude.contains(&candidate.id))
            .map(|candidate| {
                let worker = WorkerId::new(candidate.id);
                let depth = state.workers.get(worker).map_or(0, |slot| state.matches.depth(slot));
                let cached = (depth * block_tokens).min(reusable);
                let rates = state.rates_of(worker);
                let tokens = (cached, prompt_tokens - cached);
                cost(&self.cost, rates, worker, self.ledger.load(worker), tokens, work)
            })
            .collect();
        let chosen = pick(&self.cost, &costs, &mut state.random).ok_or_else(|| {
            let message = format!(
                "none of {} workers is left, {} are excluded",
                candidates.len(),
                exclude.len()
            );
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })?;
        let chosen = costs.swap_remove(chosen);

        let prefill_tokens = if work == Work::Prefill { chosen.new_tokens } else { 0 };
        let blocks = request.blocks.block_size().blocks_for(prompt_tokens);
        let booking = self.ledger.book(chosen.worker, prefill_tokens, blocks);
        let booked = (self.clock.now(), chosen.load.prefill_tokens + prefill_tokens);
        Ok(Decision {
            worker: chosen.worker,
            cached_tokens: chosen.cached_tokens,
            explain: RouteExplain { prompt_tokens, chosen, others: costs },
            booking,
            booked,
        })
    }

    /// Takes in what a worker says of its cache.
    pub fn apply(&self, event: &KvEvent) {
        let mut state = self.lock();
        let state = &mut *state;
        let worker = event.worker;
        state.events_total += 1;
        let Some(slot) = state.workers.get_or_take(worker) else {
            return tracing::warn!(%worker, "more workers than there are slots: its cache is not seen");
        };
        match state.sequencers.entry(worker).or_default().judge(event) {
            Verdict::Ignore => return,
            Verdict::Apply => {}
            Verdict::Restart => state.index.clear(slot),
            Verdict::Gap => {
                state.gaps_total += 1;
                state.index.clear(slot);
            }
        }
        match &event.change {
            KvChange::BlockStored { parent, blocks, tier } => {
                state.hashes.clear();
                state.hashes.extend(blocks.iter().map(|block| block.sequence));
                state.index.store(slot, *tier, *parent, &state.hashes);
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                state.index.remove(slot, *tier, sequence_hashes);
            }
            KvChange::AllBlocksCleared => state.index.clear(slot),
            _ => tracing::warn!(%worker, "KV event of an unknown kind"),
        }
    }

    /// Forgets what is known of an instance's caches and speed, because it is gone.
    ///
    /// Its bookings stay until their streams end. [`route`](Self::route) forgets by itself what
    /// stays missing from the candidates.
    pub fn forget(&self, instance: InstanceId) {
        self.lock().forget(|known| known == instance);
    }

    /// Learns a worker's speed from the first token of a decision.
    pub fn observe_first_token(&self, decision: &mut Decision) {
        decision.booking.prefill_done();
        let (since, tokens) = decision.booked;
        let seconds = self.clock.now().saturating_duration_since(since).as_secs_f64();
        let mut state = self.lock();
        state.pool_rates.observe(tokens, seconds);
        state.rates.entry(decision.worker).or_default().observe(tokens, seconds);
    }

    /// Returns what is booked on `worker`.
    pub fn load(&self, worker: WorkerId) -> Load {
        self.ledger.load(worker)
    }

    /// Returns a worker's learned prefill time per token in seconds, once there is one.
    pub fn prefill_s_per_token(&self, worker: WorkerId) -> Option<f64> {
        self.lock().rates.get(&worker).and_then(Rates::prefill_s_per_token)
    }

    /// Returns what the router holds at this moment.
    pub fn stats(&self) -> RouterStats {
        let state = self.lock();
        RouterStats {
            bookings: self.ledger.requests(),
            indexed_blocks: state.index.len(),
            events_total: state.events_total,
            gaps_total: state.gaps_total,
        }
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns what `worker` has shown, or the pool's if that is nothing yet.
    fn rates_of(&self, worker: WorkerId) -> Rates {
        let own = self.rates.get(&worker).copied();
        own.filter(|own| own.prefill_s_per_token().is_some()).unwrap_or(self.pool_rates)
    }

    /// Forgets instances that have been missing from the candidates for a while.
    ///
    /// Not at once: one may be ahead of discovery, and two callers may hold lists of different age.
    fn forget_absent(&mut self, candidates: &[Instance], now: Instant) {
        if candidates.len() != self.listed.len()
            || candidates.iter().any(|candidate| !self.listed.contains(&candidate.id))
        {
            self.listed = candidates.iter().map(|candidate| candidate.id).collect();
        }
        let workers = self.sequencers.keys().chain(self.rates.keys());
        for instance in workers.map(|worker| worker.instance) {
            if self.listed.contains(&instance) {
                self.absent_since.remove(&instance);
            } else {
                self.absent_since.entry(instance).or_insert(now);
            }
        }
        let is_gone = |since: Instant| now.saturating_duration_since(since) >= ABSENT_MAX;
        if self.absent_since.values().any(|since| is_gone(*since)) {
            let absent = std::mem::take(&mut self.absent_since);
            self.forget(|instance| absent.get(&instance).is_some_and(|since| is_gone(*since)));
            self.absent_since = absent;
            self.absent_since.retain(|_, since| !is_gone(*since));
        }
    }

    fn forget(&mut self, is_gone: impl Fn(InstanceId) -> bool) {
        let of_gone = |worker: &WorkerId| is_gone(worker.instance);
        let workers: Vec<_> = self.sequencers.keys().copied().filter(of_gone).collect();
        for worker in workers {
            self.sequencers.remove(&worker);
            if let Some(slot) = self.workers.get(worker) {
                self.index.clear(slot);
                self.workers.release(worker);
            }
        }
        self.rates.retain(|worker, _| !of_gone(worker));
    }
}

/// Longer than any difference between two views of discovery, shorter than memory can pile up in.
const ABSENT_MAX: Duration = Duration::from_secs(10);

/// Chooses and books; the booking is the guard of the stream.
///
/// A picker does not see the first token, so the prompt counts as waiting until the stream ends
/// and no speed is learned. [`PrefillDecode`](crate::PrefillDecode) does both.
impl Picker<GenerateRequest> for KvRouter {
    fn pick(
        &self,
        _: &Context,
        request: &GenerateRequest,
        candidates: &[Instance],
    ) -> Result<Pick> {
        let decision = self.route(request, candidates, &[])?;
        Ok(Pick::new(decision.worker.instance).with_guard(decision.booking))
    }
}

impl fmt::Debug for KvRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvRouter").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
