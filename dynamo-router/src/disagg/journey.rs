use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dynamo_core::protocol::{GenerateRequest, HandoffReport, InstanceId, Usage};
use dynamo_core::{Context, Error, ErrorKind, Priority};

use super::config::Near;
use super::failure::was_stopped;
use super::report::Report;
use super::{Pool, PrefillDecode};
use crate::choose::SessionKey;
use crate::router::{Constraints, Decision, Preference};

/// One request on its way through all the workers that serve parts of it.
pub(super) struct Journey {
    pub(super) engine: PrefillDecode,
    /// Whose it is, in each of the two pools.
    pub(super) session: Option<SessionKey>,
    priority: Priority,
    state: Mutex<State>,
}

struct State {
    report: Report,
    tried: Tried,
}

/// Where a prefill worker is.
pub(super) struct Zone {
    near: Near,
    value: String,
}

impl Zone {
    pub(super) fn preference(&self) -> Preference<'_> {
        let Near { label, worth } = &self.near;
        Preference { label, value: &self.value, seconds: worth.as_secs_f64() }
    }
}

/// What has failed the request so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tried {
    pub(super) prefill: Vec<InstanceId>,
    pub(super) decode: Vec<InstanceId>,
    pub(super) has_handoff_failed: bool,
    internal_failures: usize,
}

/// Which of the two pools a worker is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Prefill,
    Decode,
}

impl Journey {
    pub(super) fn new(
        engine: PrefillDecode,
        (ctx, request): (&Context, &GenerateRequest),
        report: Report,
    ) -> Self {
        let (session, priority) = (SessionKey::of(ctx, request), ctx.priority());
        let state = Mutex::new(State { report, tried: Tried::default() });
        Self { engine, session, priority, state }
    }

    /// Returns what is asked of a worker: none of those that `failed`, and `near` another one.
    pub(super) fn constraints<'a>(
        &self,
        failed: &'a [InstanceId],
        near: Option<&'a Preference<'a>>,
    ) -> Constraints<'a> {
        let constraints = Constraints::default().with_exclude(failed).with_session(self.session);
        let constraints = constraints.with_priority(self.priority);
        constraints.with_preferred(near.map_or(&[], std::slice::from_ref))
    }

    /// Returns what a decode worker is asked for to be near the one that prefills: the value of a label,
    /// if the configuration names one and the worker has it.
    pub(super) fn zone(&self, prefills: InstanceId) -> Option<Zone> {
        let near = self.engine.config.near.clone()?;
        let value = self.engine.prefill.label(prefills, &near.label)?;
        Some(Zone { near, value })
    }

    pub(super) fn pool(&self, role: Role) -> &Pool {
        match role {
            Role::Prefill => &self.engine.prefill,
            Role::Decode => &self.engine.decode,
        }
    }

    /// Has what a worker found in its cache compared with what was expected.
    pub(super) fn observe_usage(
        &self,
        role: Role,
        request: &GenerateRequest,
        decision: &Decision,
        usage: &Usage,
    ) {
        let (router, block_size) = (&self.pool(role).router, request.blocks.block_size());
        router.observe_usage(decision.worker, decision.indexed_tokens, block_size, usage);
    }

    /// Has what a hand-off took learned from.
    pub(super) fn observe_handoff(&self, request: &GenerateRequest, handoff: &HandoffReport) {
        let block_tokens = request.blocks.block_size().tokens();
        let pulled = (handoff.blocks_pulled as usize).saturating_mul(block_tokens);
        let tokens = pulled.min(request.token_ids.len());
        let took = Duration::from_micros(handoff.micros);
        self.pool(Role::Decode).router.observe_fetch(tokens, took);
    }

    /// Returns what `decision`, which is for this request, costs in `pool`, in seconds.
    pub(super) fn total_s(&self, pool: &Pool, decision: &Decision) -> f64 {
        pool.total_s(decision, self.priority)
    }

    /// Notes something in the report.
    pub(super) fn report(&self, note: impl FnOnce(&mut Report)) {
        note(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).report);
    }

    /// Notes or looks up what has failed.
    pub(super) fn tried<T>(&self, look: impl FnOnce(&mut Tried) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).tried)
    }
}

impl Tried {
    pub(super) fn of(&mut self, role: Role) -> &mut Vec<InstanceId> {
        match role {
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
        }
    }

    /// Notes that a worker failed the request.
    pub(super) fn failed(&mut self, role: Role, instance: InstanceId, error: &Error) {
        self.of(role).push(instance);
        self.internal_failures += usize::from(error.kind() == ErrorKind::Internal);
    }

    /// Tells failures of a worker, after which another one may do better, from those of the request.
    pub(super) fn blames_worker(&self, ctx: &Context, error: &Error) -> bool {
        if ctx.check().is_err() || was_stopped(ctx, error) {
            return false;
        }
        match error.kind() {
            _ if error.is_retryable() => true,
            ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Closed => true,
            // Of the worker's own making: the request's end has not come.
            ErrorKind::Cancelled | ErrorKind::DeadlineExceeded => true,
            // What breaks two workers may break all.
            ErrorKind::Internal => self.internal_failures < INTERNAL_FAILURES_MAX,
            _ => false,
        }
    }
}

const INTERNAL_FAILURES_MAX: usize = 2;
