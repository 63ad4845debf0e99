//! How a part of the answer begins: its first token, from whoever prefills.

use dynamo_core::protocol::{GenerateRequest, Stage};
use dynamo_core::{Context, Result};

use super::attempt::{Answering, Asked, sooner};
use super::config::Fallback;
use super::decide::{PrefillPlace, SplitExplain, SplitReason};
use super::journey::{Journey, Role};
use crate::router::Decision;

/// Whose first chunk it is.
pub(super) enum Begun {
    /// A prefill worker's: its stream holds the blocks for a decode worker.
    Remote(Answering),
    /// A decode worker's that does both.
    Local(Answering),
}

impl Journey {
    /// Decides where `request` is prefilled, and waits for the first chunk.
    pub(super) async fn prefill(&self, ctx: &Context, request: &GenerateRequest) -> Result<Begun> {
        let (explain, booked) = self.decide(request);
        self.report(|report| report.split(explain));
        if explain.place == PrefillPlace::Local {
            return self.prefill_locally(ctx, request, booked).await;
        }
        let half = request.with_stage(Stage::Prefill);
        let error = match self
            .ask(ctx, Asked { role: Role::Prefill, request: &half, near: None }, booked)
            .await
        {
            Ok(mut answering) => {
                let decision = &mut answering.decision;
                self.pool(Role::Prefill).router.observe_first_token(decision);
                if let Some(usage) = &answering.chunk.usage {
                    self.observe_usage(Role::Prefill, request, decision, usage);
                }
                return Ok(Begun::Remote(answering));
            }
            Err(error) => error,
        };
        let may_fall_back = self.engine.config.fallback == Fallback::LocalPrefill
            && self.tried(|tried| tried.blames_worker(ctx, &error));
        if !may_fall_back {
            return Err(error);
        }
        tracing::info!(request = %ctx.id(), %error, "prefilling where it is decoded");
        let (place, reason) = (PrefillPlace::Local, SplitReason::Fallback);
        self.report(|report| report.split(SplitExplain { place, reason, ..explain }));
        self.prefill_locally(ctx, request, None).await.map_err(|other| sooner(Some(error), other))
    }

    async fn prefill_locally(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        booked: Option<Decision>,
    ) -> Result<Begun> {
        let mut answering =
            self.ask(ctx, Asked { role: Role::Decode, request, near: None }, booked).await?;
        self.pool(Role::Decode).router.observe_first_token(&mut answering.decision);
        Ok(Begun::Local(answering))
    }
}
