//! Workers of one role: what is asked of all of them, and who waits for them.

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId};
use dynamo_core::{Client, Context, Error, ErrorKind, Priority, Result};

use crate::queue::{QueueConfig, QueuedRouter};
use crate::router::{Constraints, Decision, KvRouter, Preference};

/// Workers of one role, and the router before them; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(super) client: Client<GenerateRequest, GenerateChunk>,
    pub(super) router: KvRouter,
    labels: Arc<Labels>,
    queue: Option<QueuedRouter>,
}

#[derive(Debug, Clone, Default)]
struct Labels {
    required: Vec<(String, String)>,
    /// Label, value, and what it is worth.
    preferred: Vec<(String, String, Duration)>,
}

impl Pool {
    /// Has `router` choose among the workers that `client` calls: a router of this pool's own, for it
    /// knows the workers of one list.
    pub fn new(client: Client<GenerateRequest, GenerateChunk>, router: KvRouter) -> Self {
        Self { client, router, labels: Arc::default(), queue: None }
    }

    /// Sends requests only where `label` has `value`.
    #[must_use]
    pub fn with_required(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.labels).required.push((label.into(), value.into()));
        self
    }

    /// Sends requests rather where `label` has `value`: to go elsewhere costs `worth`.
    #[must_use]
    pub fn with_preferred(
        mut self,
        label: impl Into<String>,
        value: impl Into<String>,
        worth: Duration,
    ) -> Self {
        Arc::make_mut(&mut self.labels).preferred.push((label.into(), value.into(), worth));
        self
    }

    /// Has requests wait while all workers are busy, and no more of them than `config` allows.
    ///
    /// A request waits for the worker that it is about to be sent to, and for no other: first for a
    /// prefill worker, with nothing booked anywhere, and once that is done for a decode worker. It
    /// keeps what is staged for it meanwhile, so `wait_max` of the decode workers' queue should be
    /// shorter than prefill workers hold blocks. Decode workers never wait for prefill workers, so
    /// that nothing waits in a circle. A request that is refused goes on as
    /// [`Fallback`](super::Fallback) says: to decode workers too, in whose queue it waits if they
    /// have one.
    #[must_use]
    pub fn with_queue(mut self, config: QueueConfig) -> Self {
        self.queue = Some(QueuedRouter::for_client(self.router.clone(), &self.client, config));
        self
    }

    /// Returns who calls the workers.
    pub fn client(&self) -> &Client<GenerateRequest, GenerateChunk> {
        &self.client
    }

    /// Returns who chooses among the workers.
    pub fn router(&self) -> &KvRouter {
        &self.router
    }

    /// Returns the queue before the workers, if there is one.
    pub fn queue(&self) -> Option<&QueuedRouter> {
        self.queue.as_ref()
    }

    /// Books `request` on the best worker there may be by `constraints` and the pool's own, to be
    /// sent there; waits for its turn if the pool has a queue.
    pub(super) async fn route(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        let Some(queue) = &self.queue else {
            let decision = self.weigh(request, constraints)?;
            self.router.sent(request, constraints.session, &decision);
            return Ok(decision);
        };
        self.check_served()?;
        let (required, preferred) = self.labels(constraints);
        let constraints = constraints.with_required(&required).with_preferred(&preferred);
        queue.route(ctx, request, &constraints).await
    }

    /// Books `request` on the best worker there may be by `constraints` and the pool's own, at once; it
    /// may yet go elsewhere.
    pub(super) fn weigh(
        &self,
        request: &GenerateRequest,
        constraints: &Constraints<'_>,
    ) -> Result<Decision> {
        self.check_served()?;
        // Whoever is left out was named in the log; the others serve.
        let _ = self.router.set_workers(&self.client.candidates());
        let (required, preferred) = self.labels(constraints);
        let constraints = constraints.with_required(&required).with_preferred(&preferred);
        self.router.weigh(request, &constraints)
    }

    /// Returns what `decision` costs a request of `priority`, and what those that wait in front of it do, in seconds.
    pub(super) fn total_s(&self, decision: &Decision, priority: Priority) -> f64 {
        let chosen = &decision.explain.chosen;
        let total_s = self.router.total_s(chosen, priority);
        let Some(queue) = &self.queue else { return total_s };
        let own_s = (chosen.ttft_s - chosen.queue_s - chosen.up_s).max(0.0);
        let s_per_token = own_s / chosen.new_tokens.max(1) as f64;
        let workers = self.router.worker_count().max(1);
        let waiting_s = queue.stats().prompt_tokens as f64 * s_per_token / workers as f64;
        total_s + waiting_s
    }

    /// Returns the value of `label` of an instance that serves.
    pub(super) fn label(&self, instance: InstanceId, label: &str) -> Option<String> {
        let candidates = self.client.candidates();
        let instance = candidates.iter().find(|candidate| candidate.id == instance)?;
        instance.labels.get(label).cloned()
    }

    fn check_served(&self) -> Result<()> {
        if !self.client.candidates().is_empty() {
            return Ok(());
        }
        let message = format!("no instance serves {}", self.client.endpoint());
        Err(Error::new(ErrorKind::Unavailable, message).unprocessed())
    }

    /// Returns the labels that are required and preferred, by the pool and by `constraints`.
    fn labels<'a>(
        &'a self,
        constraints: &Constraints<'a>,
    ) -> (Vec<(&'a str, &'a str)>, Vec<Preference<'a>>) {
        let required = self.labels.required.iter().map(|(label, value)| (&**label, &**value));
        let preferred = self.labels.preferred.iter().map(|(label, value, worth)| {
            let seconds = worth.as_secs_f64();
            Preference { label, value, seconds }
        });
        (
            required.chain(constraints.required.iter().copied()).collect(),
            preferred.chain(constraints.preferred.iter().copied()).collect(),
        )
    }
}
