//! The router: what a choice is made of, and what it learns.

mod choice;
mod config;
mod constraints;
mod expected;
mod fetch;
mod scratch;
mod snapshot;
mod view;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dynamo_core::protocol::{GenerateRequest, InstanceId, LoadReport, WorkerId};
use dynamo_core::time::Clock;
use dynamo_core::{Context, Instance, Pick, Picker, Result};

pub use choice::Decision;
pub use config::{PrefixSource, RouterConfig};
pub use constraints::{Constraints, Preference};
pub(crate) use expected::Expected;

use crate::choose::{CostModel, SessionAffinity, SessionKey};
use crate::events::Intake;
use crate::index::PrefixReader;
use crate::load::{Load, expire};
use crate::workers::{Change, Common, Fleet, Members, ReleaseListener, Seat, as_ns};
use fetch::FetchSpeed;
use scratch::Scratches;

/// Chooses the worker on which a request costs least time; cheap to clone.
///
/// Told who there is ([`set_workers`](Self::set_workers)), fed by KV events
/// ([`apply`](Self::apply)), or by its own decisions alone ([`PrefixSource`]), by reports ([`report`](Self::report)) and by its own bookings.
/// Everything is synchronous. A choice reads what is there without a lock that anybody holds for
/// long, and allocates nothing.
#[derive(Clone)]
pub struct KvRouter(Arc<Shared>);

struct Shared {
    cost: CostModel,
    fetch: FetchSpeed,
    is_explained: bool,
    report_max_ns: u64,
    common: Arc<Common>,
    /// Who can be chosen.
    fleet: ArcSwap<Fleet>,
    /// Whom something is known of. Locked after `intake`, never before it.
    members: Mutex<Members>,
    intake: Intake,
    index: PrefixReader,
    random: AtomicU64,
    /// When bookings or absent workers are to be looked after, in nanoseconds.
    due: AtomicU64,
    scratches: Scratches,
    affinity: Mutex<SessionAffinity>,
}

/// What a router holds at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouterStats {
    /// Requests booked whose stream has not ended.
    pub bookings: usize,
    /// Different blocks in the index, or taken to be cached by the router's decisions.
    pub indexed_blocks: usize,
    /// Blocks of them dropped to stay below the budget of [`RouterConfig::index`], so far.
    pub blocks_dropped_total: u64,
    /// Events of workers taken in, so far.
    pub events_total: u64,
    /// Times events of a worker were lost, so far.
    pub gaps_total: u64,
    /// Bookings released because nothing went on, so far.
    pub leases_expired_total: u64,
}

impl KvRouter {
    /// Creates a router that knows nothing yet.
    pub fn new(mut config: RouterConfig, clock: Arc<dyn Clock>) -> Self {
        config.bound();
        let common = Common::new(clock, &config);
        let members = Members::new(Arc::clone(&common));
        Self::of(&config, common, members, Intake::new(config.index))
    }

    fn of(config: &RouterConfig, common: Arc<Common>, members: Members, intake: Intake) -> Self {
        Self(Arc::new(Shared {
            cost: config.cost,
            fetch: FetchSpeed::default(),
            is_explained: config.explain,
            report_max_ns: as_ns(config.report_max),
            fleet: ArcSwap::default(),
            members: Mutex::new(members),
            index: intake.reader(),
            intake,
            random: AtomicU64::new(config.seed),
            due: AtomicU64::new(0),
            scratches: Scratches::default(),
            affinity: Mutex::new(SessionAffinity::new(config.affinity)),
            common,
        }))
    }

    /// Says who there is: all instances, each with as many workers as it has ranks
    /// ([`RANKS_LABEL`](crate::RANKS_LABEL)).
    ///
    /// Costs a look at each, in whatever order, if nobody came, left or has other labels. What is known of an instance that stays missing
    /// for ten seconds is forgotten, and what it says is ignored until it is listed again; what a
    /// request must avoid goes into its [`Constraints`].
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument), which names the
    /// first instance that cannot be chosen, and says so in the log, once for each new list; all others can
    /// all the same.
    pub fn set_workers(&self, instances: &[Instance]) -> Result<()> {
        self.fleet_of(instances).1
    }

    /// Chooses among the workers there are and books the request there.
    ///
    /// Fails with a retryable [`Unavailable`](dynamo_core::ErrorKind::Unavailable) if `constraints`
    /// leave none, and with [`Overloaded`](dynamo_core::ErrorKind::Overloaded) if all have 65,535
    /// requests or 2^32 tokens before them.
    pub fn route(
        &self,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        let decision = self.weigh(request, constraints)?;
        self.sent(request, constraints.session, &decision);
        Ok(decision)
    }

    /// Chooses and books as [`route`](Self::route) does, for a request that may yet go elsewhere: that it
    /// goes there is noted by [`sent`](Self::sent).
    pub(crate) fn weigh(
        &self,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        self.choose(&self.0.fleet.load(), request, constraints)
    }

    /// Takes in what a worker said of its load at `at`; `false` if something newer is known, or the
    /// worker is not.
    ///
    /// Counts less and less until it is [`RouterConfig::report_max`] old, and then not at all.
    /// [`LoadFeed`](crate::LoadFeed) calls it for all workers of a component.
    pub fn report(&self, report: &LoadReport, at: Instant) -> bool {
        let seat = self.known(report.worker);
        let is_news = seat.is_some_and(|seat| seat.load.report(report, self.0.common.ns(at)));
        if is_news {
            self.0.common.released(report.worker);
        }
        is_news
    }

    /// Has `listener` told from now on whenever a worker may have room that it had not: a booking
    /// ended or expired, a prompt is prefilled, the worker came or has reported.
    ///
    /// It is called by whoever did that, and must not block. It lives as long as what this returns;
    /// one that owns the router keeps it alive for so long.
    pub fn on_release(
        &self,
        listener: impl Fn(WorkerId) + Send + Sync + 'static,
    ) -> ReleaseListener {
        self.on_change(move |worker, change| {
            if change == Change::Less {
                listener(worker);
            }
        })
    }

    /// Has `listener` told of each change of what is known of a worker's load.
    pub(crate) fn on_change(
        &self,
        listener: impl Fn(WorkerId, Change) + Send + Sync + 'static,
    ) -> ReleaseListener {
        self.0.common.on_change(listener)
    }

    /// Forgets what is known of an instance's caches and speed, because it is gone.
    ///
    /// Its bookings stay until their streams end. What stays missing from
    /// [`set_workers`](Self::set_workers) is forgotten by itself.
    pub fn forget(&self, instance: InstanceId) {
        self.forget_sent(&[instance]);
        self.members().forget(instance);
        self.intake().forget(instance);
    }

    /// Forgets what was sent to the workers of some instances.
    fn forget_sent(&self, instances: &[InstanceId]) {
        let now = self.0.common.clock.now();
        let seats: Vec<_> = self.members().all().collect();
        let theirs = seats.iter().filter(|seat| instances.contains(&seat.worker().instance));
        theirs.for_each(|seat| self.0.common.expected.forget(seat.slot(), now));
    }

    /// Learns a worker's speed from the first token of a decision, which no longer waits for it.
    ///
    /// The token counts once [`Booking::progress`](crate::Booking::progress) is told of it, as all
    /// others do.
    pub fn observe_first_token(&self, decision: &mut Decision) {
        decision.booking.prefill_done();
        let row = &decision.booking.seat().load;
        if let Some(took) = row.first_token(decision.prefill_tokens, self.0.common.now_ns()) {
            self.0.common.pace.prefilled(took);
        }
    }

    /// Returns how busy `worker` is.
    pub fn load(&self, worker: WorkerId) -> Load {
        let seat = self.known(worker);
        let now = self.0.common.now_ns();
        seat.map(|seat| seat.load.load(seat.load.booked(), now, self.0.report_max_ns))
            .unwrap_or_default()
    }

    /// Returns a worker's learned prefill time per token in seconds, once there is one.
    pub fn prefill_s_per_token(&self, worker: WorkerId) -> Option<f64> {
        self.known(worker).and_then(|seat| seat.load.speed().shown())
    }

    /// Returns what the router holds at this moment.
    pub fn stats(&self) -> RouterStats {
        let booked = |seat: Arc<Seat>| seat.load.booked().requests();
        let bookings: u64 = self.members().all().map(booked).sum();
        let events = self.intake().stats();
        let (decided, dropped) = self.0.common.expected.counts();
        RouterStats {
            bookings: usize::try_from(bookings).unwrap_or(usize::MAX),
            indexed_blocks: events.blocks + decided,
            blocks_dropped_total: events.blocks_dropped_total + dropped,
            events_total: events.events_total,
            gaps_total: events.gaps_total,
            leases_expired_total: self.0.common.leases_expired_total.load(Ordering::Relaxed),
        }
    }

    /// Releases what progress has stopped for, and forgets who has been away. A choice sees to it
    /// itself; for whoever waits for room and makes none.
    pub fn tidy(&self) {
        self.tend();
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.common.clock
    }

    /// Returns the fleet of `listed`, made anew if somebody came or left.
    fn fleet_of(&self, listed: &[Instance]) -> (Arc<Fleet>, Result<()>) {
        let fleet = self.0.fleet.load();
        if fleet.is_of(listed) {
            return (Arc::clone(&fleet), Ok(()));
        }
        let mut members = self.members();
        let (fleet, outcome) = members.list(listed);
        let fleet = Arc::new(fleet);
        self.0.fleet.store(Arc::clone(&fleet));
        self.look_after(&members);
        drop(members);
        let anew = self.0.common.expected.begun_anew(listed);
        if !anew.is_empty() {
            self.forget_sent(&anew);
        }
        fleet.seats().for_each(|seat| self.0.common.released(seat.worker()));
        let outcome =
            outcome.inspect_err(|error| tracing::warn!(%error, "left out of the workers"));
        (fleet, outcome)
    }

    /// Returns the seat of a worker of whom something is said; `None` if there are no more, or it was
    /// forgotten and is not listed.
    pub(crate) fn hear_of(&self, worker: WorkerId) -> Option<Arc<Seat>> {
        let mut members = self.members();
        let seat = members.hear_of(worker);
        self.look_after(&members);
        seat
    }

    /// Tells whether something is known of a worker, or it is listed.
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.members().knows(worker)
    }

    /// Returns the seat of a worker that something is known of. One that is not gets none for what is
    /// said again soon: whatever names workers that there are not takes up no room.
    pub(crate) fn known(&self, worker: WorkerId) -> Option<Arc<Seat>> {
        self.members().get(worker)
    }

    fn look_after(&self, members: &Members) {
        let due = members.next_due(as_ns(ABSENT_MAX)).unwrap_or(u64::MAX);
        self.0.due.fetch_min(due, Ordering::Relaxed);
    }

    /// Does what is due, and returns the time, in nanoseconds.
    fn tend(&self) -> u64 {
        let now = self.0.common.now_ns();
        if now < self.0.due.load(Ordering::Relaxed) {
            return now;
        }
        // Whoever has it is at it, or makes another fleet: the next choice will see.
        let Ok(mut members) = self.0.members.try_lock() else { return now };
        let gone = members.forget_absent(now, as_ns(ABSENT_MAX));
        let seats: Vec<_> = members.all().collect();
        let leases_due = now.saturating_add(as_ns(self.0.common.lease) / 4);
        self.0.due.store(leases_due, Ordering::Relaxed);
        self.look_after(&members);
        drop(members);
        seats.iter().for_each(|seat| expire(seat, now));
        gone.into_iter().for_each(|instance| self.intake().forget(instance));
        now
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.0.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn affinity(&self) -> MutexGuard<'_, SessionAffinity> {
        self.0.affinity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.0.intake
    }
}

/// Longer than any difference between two views of discovery, shorter than memory can pile up in.
const ABSENT_MAX: Duration = Duration::from_secs(10);

/// Chooses and books; the booking is the guard of the stream.
///
/// A picker does not see what comes, so the prompt counts as waiting until the stream ends, unless
/// the worker reports otherwise ([`LoadFeed`](crate::LoadFeed)), and no speed is learned.
/// [`PrefillDecode`](crate::PrefillDecode) sees it.
impl Picker<GenerateRequest> for KvRouter {
    fn pick(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        candidates: &[Instance],
    ) -> Result<Pick> {
        // Not the fleet of someone with a list of another age: the pick is one of these.
        let (fleet, _) = self.fleet_of(candidates);
        let constraints = Constraints::default()
            .with_session(SessionKey::of(ctx, request))
            .with_priority(ctx.priority());
        let decision = self.choose(&fleet, request, &constraints)?;
        self.sent(request, constraints.session, &decision);
        let WorkerId { instance, rank } = decision.worker;
        Ok(Pick::new(instance).with_rank(rank).with_guard(decision.booking.until_dropped()))
    }
}

impl fmt::Debug for KvRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvRouter").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
