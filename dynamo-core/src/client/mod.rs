//! The calling side of an endpoint: who is there, who is picked, one call.

mod counts;
mod dialled;
mod fleet;
mod health;
mod least_loaded;
mod picker;
mod power_of_two;
mod random;
mod round_robin;
mod totals;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use dialled::Dialled;
use fleet::Fleet;
pub use least_loaded::LeastLoaded;
pub use picker::{Pick, Picker};
pub use power_of_two::PowerOfTwo;
pub use random::RandomPicker;
pub use round_robin::RoundRobin;

use crate::discovery::Instance;
use crate::engine::layers::{Retries, RetryPolicy};
use crate::engine::{Context, Ending, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::{InstanceId, TraceContext};
use crate::request_plane::Message;
use crate::runtime::Runtime;
use crate::time::{Clock, SystemClock};

/// Calls the instances of one endpoint; itself an [`Engine`].
///
/// Cheap to clone. Each attempt at a request goes to at most one instance, at most once; what
/// provably was not started is tried again elsewhere ([`RetryPolicy`]). An instance that did not
/// answer is left out until a probe succeeds: any number of those that answer no probe either, and
/// of the others at most half at a time. One without room is left out as long as it asked for.
pub struct Client<Req, Resp> {
    runtime: Runtime,
    endpoint: EndpointPath,
    fleet: Arc<Fleet>,
    picker: Arc<dyn Picker<Req>>,
    retries: Retries,
    dialled: Arc<Dialled<Req, Resp>>,
}

impl<Req: Message, Resp: Message> Client<Req, Resp> {
    pub(crate) async fn connect(runtime: &Runtime, endpoint: EndpointPath) -> Result<Self> {
        let fleet = Fleet::follow(runtime, &endpoint).await?;
        let picker = Arc::new(RoundRobin::default());
        let retries = Retries::new(RetryPolicy::default());
        let runtime = runtime.clone();
        let dialled = Arc::default();
        Ok(Self { runtime, endpoint, fleet, picker, retries, dialled })
    }

    /// Chooses instances by `picker` instead of in turn.
    #[must_use]
    pub fn with_picker(mut self, picker: impl Picker<Req>) -> Self {
        self.picker = Arc::new(picker);
        self
    }

    /// Tries requests again by `policy`.
    #[must_use]
    pub fn with_retry(mut self, policy: RetryPolicy) -> Self {
        self.retries = Retries::new(policy);
        self
    }

    /// Returns the endpoint that is called.
    pub fn endpoint(&self) -> &EndpointPath {
        &self.endpoint
    }

    /// Returns the instances known at this moment, ordered by id.
    pub fn instances(&self) -> Arc<[Instance]> {
        self.fleet.instances()
    }

    /// Returns the instances known at this moment, and again whenever there are others; the latest,
    /// where they change faster than they are taken.
    pub fn watch(&self) -> BoxStream<'static, Arc<[Instance]>> {
        self.fleet.watch()
    }

    /// Returns those of them that requests go to: who did not answer, or has no room, is left out.
    pub fn candidates(&self) -> Arc<[Instance]> {
        self.fleet.candidates()
    }

    /// Waits until at least one instance is known, for `patience` at most
    /// ([`Unavailable`](ErrorKind::Unavailable)).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_ready(&self, patience: Duration) -> Result<()> {
        self.wait_for(1, patience).await
    }

    /// Waits until at least `count` instances are known, for `patience` at most
    /// ([`Unavailable`](ErrorKind::Unavailable)).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for(&self, count: usize, patience: Duration) -> Result<()> {
        tokio::time::timeout(patience, self.fleet.wait_for(count)).await.map_err(|_| {
            let (endpoint, known) = (&self.endpoint, self.instances().len());
            let message = format!("{known} of {count} instances serve {endpoint}");
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })
    }

    /// Sends `request` to one given instance, once; to which of its ranks `ctx` says
    /// ([`Context::with_rank`]).
    ///
    /// Fails with a retryable [`Unavailable`](ErrorKind::Unavailable) if it is not there, and with
    /// whatever the instance answers.
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream it returns, cancels the work at the instance.
    pub async fn direct(
        &self,
        instance: InstanceId,
        ctx: Context,
        request: Req,
    ) -> Result<ResponseStream<Resp>> {
        let instances = self.instances();
        let known = instances.binary_search_by_key(&instance, |known| known.id).map_err(|_| {
            let message = format!("instance {instance} of {} is not known", self.endpoint);
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })?;
        self.ask(instances, known, &ctx, request).await
    }

    /// Sends `request` to one of `instances`, and learns from how it goes.
    async fn ask(
        &self,
        instances: Arc<[Instance]>,
        at: usize,
        ctx: &Context,
        request: Req,
    ) -> Result<ResponseStream<Resp>> {
        let instance = &instances[at];
        let (fleet, started) = (Arc::clone(&self.fleet), SystemClock.now());
        ctx.note_tried(instance.id);
        let (ctx, span) = self.trace(ctx, instance);
        let call = self.start(instance, ctx, request);
        match call.instrument(span.clone()).await {
            Ok(stream) => {
                fleet.health.worked(instance.id);
                let stream = stream.in_span(span).on_end(move |course| {
                    fleet.totals.measures.ended(started, course);
                    if let Ending::Failed(error) = course.ending {
                        fleet.health.failed(&instances[at], fleet.instances().len(), error);
                    }
                });
                Ok(stream)
            }
            Err(error) => {
                fleet.totals.measures.refused(&error);
                fleet.health.failed(instance, fleet.instances().len(), &error);
                Err(error)
            }
        }
    }

    /// Returns a context of the call's own, one span further in the trace, and the span.
    fn trace(&self, ctx: &Context, instance: &Instance) -> (Context, Span) {
        let (endpoint, id) = (&self.endpoint, instance.id);
        let span = tracing::info_span!(
            "call", %endpoint, instance = %id, request = %ctx.id(), trace = Empty, span = Empty
        );
        let mut ctx = ctx.child();
        if let Some(trace) = ctx.trace().map(TraceContext::child) {
            ctx = ctx.with_trace(trace);
            trace.record(&span);
        }
        (ctx, span)
    }

    /// Starts the request; `ctx` is of this call alone, which ends without ending the caller's
    /// whole request.
    async fn start(
        &self,
        instance: &Instance,
        ctx: Context,
        request: Req,
    ) -> Result<ResponseStream<Resp>> {
        let on_drop = KillOnDrop(Some(ctx.clone()));
        let engine = match self.dialled.find(instance) {
            Some(known) => known,
            None => {
                let ingress = ctx.bound(self.runtime.request_plane().dial(instance)).await?;
                let engine = ingress.engine::<Req, Resp>()?;
                if ingress.is_remote() {
                    self.dialled.keep(instance, &engine, &self.instances());
                }
                engine
            }
        };
        let stream = engine.generate(ctx, request).await?;
        on_drop.disarm();
        Ok(stream)
    }

    /// Makes one attempt at `request`, with an instance that is not in `failed` if there is one.
    async fn attempt(
        &self,
        ctx: &Context,
        failed: &mut Vec<InstanceId>,
        request: Req,
    ) -> Result<ResponseStream<Resp>> {
        let mut candidates = self.candidates();
        if candidates.is_empty() {
            return Err(self.no_instance());
        }
        let mut tried = ctx.tried();
        tried.extend_from_slice(failed);
        if !tried.is_empty() {
            let others = candidates.iter().filter(|candidate| !tried.contains(&candidate.id));
            let others: Arc<[Instance]> = others.cloned().collect();
            if !others.is_empty() {
                candidates = others;
            }
        }
        let pick = self.picker.pick(ctx, &request, &candidates)?;
        let id = pick.instance();
        let picked = candidates.binary_search_by_key(&id, |candidate| candidate.id);
        let picked = picked.map_err(|_| Error::internal(format!("{id} was picked of others")))?;
        // Not the rank of the hop that led here: it was meant for another instance.
        let ctx = ctx.clone().with_rank(pick.rank());
        let stream = self.ask(candidates, picked, &ctx, request).await;
        Ok(stream.inspect_err(|_| failed.push(id))?.with_guard(pick.into_guard()))
    }

    fn no_instance(&self) -> Error {
        let message = format!("no instance serves {}", self.endpoint);
        Error::new(ErrorKind::Unavailable, message).unprocessed()
    }
}

impl<Req: Message, Resp: Message> Engine for Client<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let mut attempts = self.retries.begin();
        let mut failed = Vec::new();
        while !attempts.is_last() {
            match self.attempt(&ctx, &mut failed, request.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    // Another instance may have room at once.
                    let is_other = |candidate: &Instance| !failed.contains(&candidate.id);
                    let has_other = self.candidates().iter().any(is_other);
                    let retry_after = if has_other { None } else { error.retry_after() };
                    attempts.again(&ctx, error, retry_after).await?;
                    self.fleet.totals.retries.add(1);
                }
            }
        }
        self.attempt(&ctx, &mut failed, request).await
    }
}

impl<Req, Resp> Clone for Client<Req, Resp> {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            endpoint: self.endpoint.clone(),
            fleet: Arc::clone(&self.fleet),
            picker: Arc::clone(&self.picker),
            retries: self.retries.clone(),
            dialled: Arc::clone(&self.dialled),
        }
    }
}

impl<Req, Resp> fmt::Debug for Client<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Kills a call whose future is dropped before it has a stream.
struct KillOnDrop(Option<Context>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(ctx) = &self.0 {
            ctx.kill();
        }
    }
}
