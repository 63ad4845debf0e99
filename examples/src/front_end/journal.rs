//! What becomes of each request: by whom it was served, what was expected of them, and what they did.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::engine::Ending;
use dynamo_core::engine::layers::{Migrate, MigratePolicy};
use dynamo_core::protocol::{FinishReason, GenerateChunk, GenerateRequest, InstanceId};
use dynamo_core::time::{Clock, SystemClock};
use dynamo_core::{Client, Context, Engine, Error, ErrorKind, RequestId, ResponseStream, Result};
use serde_json::{Value, json};

use super::workers::Workers;
use crate::graph::WORKER;

/// How one request went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The request.
    pub request: RequestId,
    /// The names of the workers that began a part of the answer, in order; more than one if it moved.
    pub parts: Vec<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the router expected to be cached, of the part whose worker said what was;
    /// none without a router.
    pub predicted_cached_tokens: Option<usize>,
    /// Prompt tokens that were cached, as the first worker says that comes to say it; none if none does.
    pub cached_tokens: Option<usize>,
    /// Tokens delivered.
    pub completion_tokens: usize,
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With its last token.
    Finished(FinishReason),
    /// With an error, which is this.
    Failed(String),
    /// Its client went away.
    Cancelled,
}

impl Served {
    /// Returns it as JSON; `worker` is the one that served it last.
    pub fn to_json(&self) -> Value {
        let (finish, error) = match &self.outcome {
            Outcome::Finished(FinishReason::Stop) => ("stop", None),
            Outcome::Finished(_) => ("length", None),
            Outcome::Failed(error) => ("error", Some(error)),
            Outcome::Cancelled => ("cancelled", None),
        };
        let mut line = json!({
            "id": self.request.as_str(),
            "worker": self.parts.last(),
            "parts": self.parts,
            "prompt_tokens": self.prompt_tokens,
            "predicted_cached_tokens": self.predicted_cached_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "ttft_ms": self.ttft.map(|ttft| ttft.as_secs_f64() * 1e3),
            "finish": finish,
        });
        if let Some(error) = error {
            line["error"] = json!(error);
        }
        line
    }
}

type Told = Arc<dyn Fn(&Served) + Send + Sync>;

/// The workers as one engine, in which an answer moves on when its worker is lost; it tells how each
/// request went.
pub(super) struct Journal {
    workers: Workers,
    client: Client<GenerateRequest, GenerateChunk>,
    told: Told,
}

impl Journal {
    /// Tells `told`; `client` knows the workers' names.
    pub(super) fn new(
        workers: Workers,
        client: Client<GenerateRequest, GenerateChunk>,
        told: impl Fn(&Served) + Send + Sync + 'static,
    ) -> Self {
        Self { workers, client, told: Arc::new(told) }
    }
}

impl Engine for Journal {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let page = Page::open(&ctx, &request, Arc::clone(&self.told));
        let (workers, client) = (self.workers.clone(), self.client.clone());
        let parts = Parts { workers, client, page: Arc::clone(&page) };
        let answer = Migrate::new(parts, MigratePolicy::default());
        let stream = answer.generate(ctx, request).await;
        let stream = stream.inspect_err(|error| page.entry().failed(error))?;
        let (noted, ended) = (Arc::clone(&page), page);
        let stream = stream.map(move |chunk| {
            noted.entry().chunk(&chunk);
            Ok(chunk)
        });
        Ok(stream.on_end(move |course| match course.ending {
            Ending::Failed(error) => ended.entry().failed(error),
            Ending::Complete => ended.entry().completed(),
            Ending::Dropped => {}
        }))
    }
}

/// The parts of one answer.
struct Parts {
    workers: Workers,
    client: Client<GenerateRequest, GenerateChunk>,
    page: Arc<Page>,
}

impl Parts {
    /// Returns the name of a worker, as it says itself.
    fn name(&self, instance: InstanceId) -> String {
        let instances = self.client.instances();
        let known = instances.iter().find(|known| known.id == instance);
        let name = known.and_then(|known| known.labels.get(WORKER).cloned());
        name.unwrap_or_else(|| instance.to_string())
    }
}

impl Engine for Parts {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let begun = self.workers.begin(ctx, request).await?;
        let name = begun.worker.map(|worker| self.name(worker));
        self.page.entry().began(name, begun.predicted_cached_tokens);
        Ok(begun.stream)
    }
}

/// What is written of one request, handed in when nobody writes any more.
struct Page {
    entry: Mutex<Entry>,
    told: Told,
}

struct Entry {
    served: Served,
    started: Instant,
    /// A worker has said what was cached.
    is_reported: bool,
}

impl Page {
    fn open(ctx: &Context, request: &GenerateRequest, told: Told) -> Arc<Self> {
        let served = Served {
            request: ctx.id().clone(),
            parts: Vec::new(),
            prompt_tokens: request.token_ids.len(),
            predicted_cached_tokens: None,
            cached_tokens: None,
            completion_tokens: 0,
            ttft: None,
            outcome: Outcome::Cancelled,
        };
        let entry = Entry { served, started: SystemClock.now(), is_reported: false };
        Arc::new(Self { entry: Mutex::new(entry), told })
    }

    fn entry(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        (self.told)(&self.entry().served);
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Entry {
    fn began(&mut self, name: Option<String>, predicted: Option<usize>) {
        let Self { served, is_reported, .. } = self;
        served.parts.extend(name);
        if !*is_reported {
            // The prompt of a later part has what was delivered at its end.
            let predicted = predicted.map(|tokens| tokens.min(served.prompt_tokens));
            served.predicted_cached_tokens = predicted;
        }
    }

    fn chunk(&mut self, chunk: &GenerateChunk) {
        let Self { served, started, is_reported } = self;
        if !chunk.token_ids.is_empty() {
            served.completion_tokens += chunk.token_ids.len();
            served.ttft.get_or_insert_with(|| SystemClock.now() - *started);
        }
        if let Some(usage) = chunk.usage {
            *is_reported = true;
            served.cached_tokens = usage.cached_tokens.map(|tokens| tokens as usize);
        }
        if let Some(reason) = chunk.finish {
            served.outcome = Outcome::Finished(reason);
        }
    }

    /// Notes what ended the answer, unless that was its last chunk.
    fn failed(&mut self, error: &Error) {
        let outcome = &mut self.served.outcome;
        match (&*outcome, error.kind()) {
            (Outcome::Finished(_), _) | (_, ErrorKind::Cancelled) => {}
            _ => *outcome = Outcome::Failed(error.to_string()),
        }
    }

    fn completed(&mut self) {
        if self.served.outcome == Outcome::Cancelled {
            self.served.outcome = Outcome::Failed("the answer ended without a reason".to_owned());
        }
    }
}
