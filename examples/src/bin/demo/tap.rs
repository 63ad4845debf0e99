//! Listens in on an engine: keeps the tokens of each answer, to be compared later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, TokenId};
use dynamo_core::{Context, Engine, ResponseStream, Result, SharedEngine};
use futures::StreamExt;

/// An engine that passes everything on and remembers it.
#[derive(Clone)]
pub(crate) struct Tap {
    engine: SharedEngine<GenerateRequest, GenerateChunk>,
    heard: Arc<Mutex<HashMap<String, Heard>>>,
}

/// One request and the tokens that answered it.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) request: GenerateRequest,
    pub(crate) token_ids: Vec<TokenId>,
}

impl Tap {
    pub(crate) fn new(engine: SharedEngine<GenerateRequest, GenerateChunk>) -> Self {
        Self { engine, heard: Arc::default() }
    }

    /// Returns what was heard of request `id`.
    pub(crate) fn heard(&self, id: &str) -> Option<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

impl Engine for Tap {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let id = ctx.id().to_string();
        let entry = Heard { request: request.clone(), token_ids: Vec::new() };
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), entry);
        let stream = self.engine.generate(ctx.clone(), request).await?;
        let heard = Arc::clone(&self.heard);
        let items = stream.inspect(move |item| {
            let Ok(chunk) = item else { return };
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = heard.get_mut(&id) {
                entry.token_ids.extend(&chunk.token_ids);
            }
        });
        Ok(ResponseStream::new(&ctx, items))
    }
}
