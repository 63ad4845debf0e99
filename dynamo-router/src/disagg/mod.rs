//! Prefill here, decode there: an engine over two pools.
//!
//! ```text
//! decide ─► prefill ─► first token + ticket ─► hand-off ─► pull ─► tokens … ─► report
//!    │                 │ the prefill stream stays open: it holds the staged blocks │
//!    └────► decode worker prefills by itself ─► tokens …
//!                                                  └─ lost ─► decide anew, for the rest
//! ```
//!
//! The hold is a guard that lives in the prefill *stream*. Whatever ends the request, a finished
//! pull, an error, the client hanging up or this process dying, ends that stream and with it the
//! hold.
//!
//! | file | what happens there |
//! |---|---|
//! | `pool.rs` | the workers of one role: what is asked of them, and the queue before them |
//! | `decide.rs` | local or remote prefill, by the routers' costs |
//! | `prefill.rs`, `attempt.rs` | the first token: worker after worker, local where remote failed |
//! | `handoff.rs` | the ticket goes to one decode worker after the other |
//! | `part.rs` | a part of the answer, from its first chunk to its last |
//! | `migrate.rs` | the part that follows one that was lost |
//! | `failure.rs`, `report.rs` | how it went: to the client, to the observer |

mod attempt;
mod config;
mod decide;
mod failure;
mod handoff;
mod journey;
mod migrate;
mod part;
mod pool;
mod prefill;
mod report;

use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, Stage};
use dynamo_core::{Context, Engine, Error, ResponseStream, Result};

pub use config::{DisaggConfig, Fallback, Near, Split};
pub use decide::{PrefillPlace, SplitCosts, SplitExplain, SplitReason};
pub use failure::Interrupted;
pub use pool::Pool;
pub use report::{DisaggReport, Observer, Outcome};

use journey::Journey;
use report::Report;

/// Serves requests by a prefill worker and then a decode worker, or by a decode worker alone where
/// that costs less; cheap to clone.
///
/// An answer has exactly one end: its last chunk, or one error. A worker that fails is replaced, as
/// far as [`Fallback`] goes and to the request's deadline at most; with greedy sampling, and with
/// any whose random numbers depend on seed and position alone, the answer is the same. One that
/// fails after its first chunk says by [`Interrupted`] how much there was.
///
/// Requests of a [session](crate::choose::SESSION_METADATA) stay together in each of the two pools.
///
/// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if the request comes
/// with a [`Stage`] of its own, and with what the last worker that was asked has said:
/// [`Overloaded`](dynamo_core::ErrorKind::Overloaded) and when to come back if nobody has room.
#[derive(Clone)]
pub struct PrefillDecode {
    prefill: Pool,
    decode: Pool,
    config: DisaggConfig,
    observer: Arc<dyn Observer>,
}

impl PrefillDecode {
    /// Creates the engine over two pools.
    pub fn new(prefill: Pool, decode: Pool) -> Self {
        let (config, observer) = (DisaggConfig::default(), Arc::new(|_: &DisaggReport| {}));
        Self { prefill, decode, config, observer }
    }

    /// Splits and falls back by `config`.
    #[must_use]
    pub fn with_config(mut self, config: DisaggConfig) -> Self {
        self.config = config;
        self
    }

    /// Tells `observer` how each request went, exactly once.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer) -> Self {
        self.observer = Arc::new(observer);
        self
    }
}

impl Engine for PrefillDecode {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let clock = Arc::clone(self.prefill.router.clock());
        let report = Report::new(&ctx, &request, Arc::clone(&self.observer), clock);
        let journey = Arc::new(Journey::new(self.clone(), (&ctx, &request), report));
        let answer = if request.stage == Stage::Full {
            migrate::answer(&journey, &ctx, request).await
        } else {
            // A ticket is made by a server; one that comes from outside is never redeemed.
            let message = format!("request {} comes with a stage of its own", ctx.id());
            Err(Error::invalid(message))
        };
        answer.inspect_err(|error| journey.report(|report| report.failed(error)))
    }
}

impl fmt::Debug for PrefillDecode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefillDecode")
            .field("prefill", &self.prefill)
            .field("decode", &self.decode)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
