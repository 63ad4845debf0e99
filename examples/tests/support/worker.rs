//! Workers whose tokens are a pure function of what stands before them, with caches that they tell of.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{
    FinishReason, GenerateChunk, GenerateRequest, InstanceId, KvChange, KvEvent, SequenceHash,
    StoredBlock, Tier, TokenId, Usage, WorkerId,
};
use dynamo_core::{
    Context, Error, ErrorKind, ResponseStream, Result, Runtime, ServeOptions, Serving, engine_fn,
};
use dynamo_examples::graph::{GENERATE, KV_EVENTS, WORKER};
use futures::stream;

use crate::folder::BYTES;

/// After how many tokens which of the calls of all workers is lost.
pub(crate) struct Deaths {
    tokens: usize,
    calls: std::ops::Range<usize>,
    called: AtomicUsize,
}

impl Deaths {
    pub(crate) fn none() -> Self {
        Self { tokens: 0, calls: 0..0, called: AtomicUsize::new(0) }
    }

    /// The first call is lost.
    pub(crate) fn after(tokens: usize) -> Self {
        Self { tokens, calls: 0..1, called: AtomicUsize::new(0) }
    }

    /// Every call is, before its first token.
    pub(crate) fn always() -> Self {
        Self { tokens: 0, calls: 0..usize::MAX, called: AtomicUsize::new(0) }
    }

    fn next(&self) -> Option<usize> {
        let call = self.called.fetch_add(1, Ordering::Relaxed);
        self.calls.contains(&call).then_some(self.tokens)
    }
}

/// A worker of the namespace `demo`.
pub(crate) struct Worker {
    _serving: Serving,
}

impl Worker {
    pub(crate) async fn start(
        runtime: &Runtime,
        component: &str,
        name: &str,
        deaths: &Arc<Deaths>,
    ) -> Self {
        let component = runtime.namespace("demo").unwrap().component(component).unwrap();
        let id = InstanceId::random();
        let events = component.publisher::<KvEvent>(KV_EVENTS).unwrap();
        let cache = Arc::new(Mutex::new((HashSet::<SequenceHash>::new(), 0u64)));
        let deaths = Arc::clone(deaths);
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let (cached, new, seq) = {
                let mut cache = cache.lock().unwrap();
                let (held, seq) = &mut *cache;
                let hashes = request.blocks.sequence();
                let cached = hashes.iter().take_while(|hash| held.contains(hash)).count();
                held.extend(hashes);
                let new = hashes.iter().zip(request.blocks.local()).skip(cached);
                let new: Vec<_> = new
                    .map(|(sequence, local)| StoredBlock { sequence: *sequence, local: *local })
                    .collect();
                let number = *seq;
                *seq += u64::from(!new.is_empty());
                (cached, new, number)
            };
            if !new.is_empty() {
                let parent = cached.checked_sub(1).map(|at| request.blocks.sequence()[at]);
                let change = KvChange::BlockStored { parent, blocks: new, tier: Tier::Device };
                let event = KvEvent { worker: WorkerId::new(id), epoch: 1, seq, change };
                events.publish(&event).unwrap();
            }
            let stream =
                ResponseStream::new(&ctx, stream::iter(items(&request, cached, deaths.next())));
            async move { Ok(stream) }
        });
        let options = ServeOptions::default().with_instance(id).with_label(WORKER, name);
        let endpoint = component.endpoint(GENERATE).unwrap();
        Self { _serving: endpoint.serve_with(engine, options).await.unwrap() }
    }
}

/// One token in each chunk, up to the last one or the death.
fn items(
    request: &GenerateRequest,
    cached_blocks: usize,
    dies_after: Option<usize>,
) -> Vec<Result<GenerateChunk>> {
    let mut tokens = request.token_ids.to_vec();
    let mut items = Vec::new();
    for _ in 0..request.sampling.max_tokens {
        let token = next_token(&tokens);
        tokens.push(token);
        items.push(Ok(GenerateChunk { token_ids: vec![token], ..GenerateChunk::default() }));
    }
    let block_tokens = request.blocks.block_size().tokens();
    // The last token of a prompt is always computed.
    let reusable = (request.token_ids.len() - 1) / block_tokens;
    let count = |tokens: usize| u32::try_from(tokens).unwrap();
    let usage = Usage {
        prompt_tokens: count(request.token_ids.len()),
        cached_tokens: Some(count(cached_blocks.min(reusable) * block_tokens)),
        completion_tokens: request.sampling.max_tokens,
        ..Usage::default()
    };
    let finish = Some(FinishReason::Length);
    items.push(Ok(GenerateChunk { finish, usage: Some(usage), ..GenerateChunk::default() }));
    if let Some(after) = dies_after.filter(|after| *after < items.len()) {
        items.truncate(after);
        items.push(Err(Error::new(ErrorKind::Unavailable, "the worker died")));
    }
    items
}

/// A letter, or a part of one, by all that stands before it.
fn next_token(tokens: &[TokenId]) -> TokenId {
    const E_ACUTE: [u32; 2] = [0xc3, 0xa9];
    if tokens.last() == Some(&(BYTES + E_ACUTE[0])) {
        return BYTES + E_ACUTE[1];
    }
    let digest = tokens.iter().fold(7u64, |digest, token| {
        (digest ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    BYTES
        + match digest % 4 {
            0 => E_ACUTE[0],
            1 => u32::from(b' '),
            _ => u32::from(b'c') + u32::try_from(digest / 4 % 20).unwrap(),
        }
}
