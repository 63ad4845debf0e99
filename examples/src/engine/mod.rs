//! A worker: one KV cache, one model, any number of sequences at once.
//!
//! ```text
//! Full     wait for room → acquire prefix → prefill the rest → decode
//! Prefill  wait for room → acquire prefix → prefill the rest → first token → stage blocks, hold until pulled
//! Decode   pull blocks → wait for room → decode
//! ```
//!
//! A router has chosen this worker for a request that waits: meanwhile what is below memory of its prefix
//! comes up.
//!
//! The async shell admits, pulls and stages; computing happens on blocking threads that look at
//! the request's context between chunks and tokens.

mod admit;
mod cost;
mod generation;
mod load;
mod sequence;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{
    FinishReason, GenerateChunk, GenerateRequest, HandoffReport, HandoffTicket, Sampling, Stage,
    TokenId, Usage,
};
use dynamo_core::{Context, Engine, Error, RequestId, ResponseSender, ResponseStream, Result};
use dynamo_kv::{BlockLayout, BlockManager, DType, Handoff, TokenSequence};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::model::{Model, ModelConfig};
pub use cost::measure;
use generation::Generation;
use load::{Busy, Share};
use sequence::SequenceKv;

/// Serves a model over a block manager's memory; cheap to clone.
#[derive(Clone)]
pub struct LlamaWorker(Arc<Inner>);

struct Inner {
    model: Arc<Model>,
    manager: BlockManager,
    handoff: Handoff,
    options: WorkerOptions,
    compute: Arc<Semaphore>,
    busy: Arc<Busy>,
    tasks: TaskTracker,
}

/// How a worker computes.
#[derive(Clone)]
pub struct WorkerOptions {
    /// Prompt tokens computed between two looks at the request's context.
    pub prefill_chunk_tokens: usize,
    /// Sequences computed at once; others wait, no longer than their deadline.
    pub sequences_max: usize,
    /// Told how far each prefill is.
    pub on_progress: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { prefill_chunk_tokens: 64, sequences_max: 4, on_progress: Arc::new(|_| {}) }
    }
}

/// How far the prefill of one request is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The request.
    pub request: &'a RequestId,
    /// Prompt tokens whose KV is there.
    pub tokens_done: usize,
    /// Prompt tokens in all.
    pub tokens_total: usize,
}

/// Returns the layout of one block of `model`'s KV: f32, as the forward pass reads and writes it.
pub fn block_layout(
    model: &ModelConfig,
    block_size: dynamo_core::protocol::BlockSize,
) -> Result<BlockLayout> {
    BlockLayout::new(model.layers, model.kv_heads, model.head_dim, block_size, DType::F32)
        .map_err(|error| Error::invalid("KV layout of the model").with_source(error))
}

impl LlamaWorker {
    /// Creates a worker that keeps its KV in `manager` and hands it over through `handoff`.
    pub fn new(
        model: Arc<Model>,
        manager: BlockManager,
        handoff: Handoff,
        options: WorkerOptions,
    ) -> Self {
        let compute = Arc::new(Semaphore::new(options.sequences_max));
        Self(Arc::new(Inner {
            model,
            manager,
            handoff,
            options,
            compute,
            busy: Arc::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Returns the block manager.
    pub fn manager(&self) -> &BlockManager {
        &self.0.manager
    }

    /// Returns the hand-off.
    pub fn handoff(&self) -> &Handoff {
        &self.0.handoff
    }

    /// Waits until no request is being computed, staged or pulled.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.tasks.reopen();
    }

    /// Waits until every request has ended, then ends the hand-off, and the tiers once what is on its
    /// way down is there; serve no longer before.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shutdown(&self) {
        self.idle().await;
        self.0.handoff.shutdown().await;
        if let Err(error) = self.0.manager.shutdown(TIERS_ENDING_MAX).await {
            tracing::warn!(%error, "tiers below the KV cache");
        }
    }
}

impl Engine for LlamaWorker {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        self.0.validate(&request)?;
        let (sender, stream) = ResponseStream::channel(&ctx, CHUNKS_BUFFERED);
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let sender = Arc::new(sender);
            let outcome = ctx.bound(inner.serve(&ctx, request, &sender)).await;
            // A computing thread may hold the sender a moment longer after a cancellation; the
            // stream has ended by itself then.
            if let Some(sender) = Arc::into_inner(sender) {
                sender.settle(outcome);
            }
        });
        Ok(stream)
    }
}

impl Inner {
    fn validate(&self, request: &GenerateRequest) -> Result<()> {
        let (prompt, context) = (request.token_ids.len(), self.model.config().context);
        if prompt == 0 {
            return Err(Error::invalid("the prompt is empty"));
        }
        if prompt >= context {
            return Err(Error::invalid(format!(
                "a prompt of {prompt} tokens leaves no room in a context of {context}"
            )));
        }
        if let Some(token) =
            request.token_ids.iter().find(|&&t| t as usize >= self.model.config().vocab)
        {
            return Err(Error::invalid(format!("token {token} is not in the vocabulary")));
        }
        if request.sampling.max_tokens == 0 {
            return Err(Error::invalid("max_tokens is 0"));
        }
        let (ours, theirs) = (self.manager.layout().block_size(), request.blocks.block_size());
        if ours != theirs {
            return Err(Error::invalid(format!(
                "the request's blocks hold {theirs} tokens, this worker's {ours}"
            )));
        }
        Ok(())
    }

    async fn serve(
        self: &Arc<Self>,
        ctx: &Context,
        request: GenerateRequest,
        sender: &Arc<ResponseSender<GenerateChunk>>,
    ) -> Result<()> {
        let sequence =
            TokenSequence::new(&request.namespace, request.blocks.block_size(), &request.token_ids);
        let prefill_tokens = match request.stage {
            Stage::Full | Stage::Prefill => request.token_ids.len(),
            Stage::Decode { .. } => 0,
        };
        let share = self.busy.begin(prefill_tokens);
        match request.stage.clone() {
            Stage::Full => {
                let permit = self.admit(Some(&sequence)).await?;
                let kv = SequenceKv::acquire(&self.manager, &sequence).await;
                let generation = Generation::new(self, ctx, &request, sequence, kv, share);
                let sender = Arc::clone(sender);
                self.compute(permit, move || {
                    let mut generation = generation;
                    let first = generation.prefill()?;
                    generation.decode(first, true, &mut |chunk| sender.send_blocking(chunk))
                })
                .await
            }
            Stage::Prefill => self.prefill(ctx, &request, sequence, share, sender).await,
            Stage::Decode { ticket, first_token } => {
                let (kv, report) = self.pull(ctx, &ticket, &sequence).await?;
                let permit = self.admit(None).await?;
                sender
                    .send(GenerateChunk { handoff: Some(report), ..GenerateChunk::default() })
                    .await?;
                let mut generation = Generation::new(self, ctx, &request, sequence, kv, share);
                let sender = Arc::clone(sender);
                self.compute(permit, move || {
                    generation.decode(first_token, false, &mut |chunk| sender.send_blocking(chunk))
                })
                .await
            }
        }
    }

    /// Computes the prompt's KV and the first token, then holds the blocks until they are pulled
    /// or the hold expires.
    async fn prefill(
        self: &Arc<Self>,
        ctx: &Context,
        request: &GenerateRequest,
        sequence: TokenSequence,
        share: Share,
        sender: &Arc<ResponseSender<GenerateChunk>>,
    ) -> Result<()> {
        let permit = self.admit(Some(&sequence)).await?;
        let kv = SequenceKv::acquire(&self.manager, &sequence).await;
        let mut generation = Generation::new(self, ctx, request, sequence, kv, share);
        let (first, generation) =
            self.compute(permit, move || Ok((generation.prefill()?, generation))).await?;
        let usage = |completion_tokens| Some(Usage { completion_tokens, ..generation.usage() });
        if generation.is_stop(first) {
            let finish = Some(FinishReason::Stop);
            let chunk = GenerateChunk { finish, usage: usage(0), ..GenerateChunk::default() };
            return sender.send(chunk).await;
        }
        let chunk =
            GenerateChunk { token_ids: vec![first], usage: usage(1), ..GenerateChunk::default() };
        if request.sampling.max_tokens == 1 {
            return sender
                .send(GenerateChunk { finish: Some(FinishReason::Length), ..chunk })
                .await;
        }
        let (blocks, tail) = generation.into_kv().into_staged();
        let mut staged = self.handoff.stage(blocks, tail)?;
        let ticket = Some(staged.ticket().clone());
        sender.send(GenerateChunk { ticket, ..chunk }).await?;
        // The hold lives as long as this stream: whoever drops the stream releases the blocks.
        staged.settled().await;
        Ok(())
    }

    async fn pull(
        &self,
        ctx: &Context,
        ticket: &HandoffTicket,
        sequence: &TokenSequence,
    ) -> Result<(SequenceKv, HandoffReport)> {
        let pulled = self.handoff.pull([ticket], sequence, ctx.deadline()).await?;
        let report = pulled.report;
        Ok((SequenceKv::pulled(self.manager.clone(), pulled), report))
    }
}

impl fmt::Debug for LlamaWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlamaWorker").field("pool", &self.0.manager.stats()).finish_non_exhaustive()
    }
}

impl fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("prefill_chunk_tokens", &self.prefill_chunk_tokens)
            .field("sequences_max", &self.sequences_max)
            .finish_non_exhaustive()
    }
}

/// A token a few steps ahead of its reader keeps the computing thread busy; more only hides a
/// slow client.
const CHUNKS_BUFFERED: usize = 4;

/// A queue of blocks is written in much less.
const TIERS_ENDING_MAX: Duration = Duration::from_secs(10);

/// Tells the tokens that end an answer: the model's own, unless they are ignored, and the request's.
fn is_stop(model: &ModelConfig, sampling: &Sampling, token: TokenId) -> bool {
    let is_end = !sampling.ignore_end && model.eos_token_ids.contains(&token);
    is_end || sampling.stop_token_ids.contains(&token)
}
