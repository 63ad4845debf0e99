use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, LocalHash, PromptBlocks};
use dynamo_core::random::Random;
use dynamo_core::{Error, Result};
use serde_json::Value;

/// Requests and when they come: what a fleet is replayed with.
#[derive(Debug, Clone)]
pub struct Trace {
    pub(super) block_size: BlockSize,
    /// In the order of their arrival.
    pub(super) requests: Vec<TraceRequest>,
}

/// One request of a trace.
#[derive(Debug, Clone)]
pub(super) struct TraceRequest {
    /// Since the start of the trace.
    pub(super) at: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
    /// The full blocks of the prompt.
    pub(super) blocks: Arc<PromptBlocks>,
}

impl Trace {
    /// Reads a trace in Mooncake's format: a JSON object a line, with `timestamp` in milliseconds,
    /// `input_length` and `output_length` in tokens, and `hash_ids` that name blocks of 512 tokens.
    ///
    /// The last, partial block of a prompt is named too and never found again, so it is left out.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument), naming the line.
    pub fn mooncake(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let requests = lines.map(|(number, line)| {
            request(line)
                .map_err(|what| Error::invalid(format!("trace, line {}: {what}", number + 1)))
        });
        Ok(Self::new(requests.collect::<Result<_>>()?))
    }

    /// Returns `count` requests that come at random, `per_s` each second, and share no block.
    pub fn zero_reuse(count: usize, per_s: f64, seed: u64) -> Self {
        let mut made = Made::new(per_s, seed);
        Self::new((0..count).map(|_| made.request(0)).collect())
    }

    /// Returns the same requests behind one prefix of `prefix_blocks` blocks that all share.
    pub fn hot_prefix(count: usize, per_s: f64, prefix_blocks: usize, seed: u64) -> Self {
        let mut made = Made::new(per_s, seed);
        Self::new((0..count).map(|_| made.request(prefix_blocks)).collect())
    }

    /// Returns the trace with requests coming `factor` times as often.
    #[must_use]
    pub fn at_load(mut self, factor: f64) -> Self {
        for request in &mut self.requests {
            request.at = request.at.div_f64(factor);
        }
        self
    }

    /// Returns the first `count` requests.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.requests.truncate(count);
        self
    }

    /// Returns how many requests there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Tells whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn new(mut requests: Vec<TraceRequest>) -> Self {
        requests.sort_by_key(|request| request.at);
        Self { block_size: BLOCK_SIZE, requests }
    }
}

/// The one that Mooncake's traces are hashed with.
const BLOCK_SIZE: BlockSize = match BlockSize::new(512) {
    Some(size) => size,
    None => unreachable!(),
};

fn request(line: &str) -> std::result::Result<TraceRequest, String> {
    let object: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let number = |name: &str| {
        let number = object.get(name).and_then(Value::as_u64);
        number.ok_or_else(|| format!("no number {name:?}"))
    };
    let tokens = |name: &str| {
        let tokens = number(name)?;
        let tokens = u32::try_from(tokens).map_err(|_| format!("{tokens} tokens of {name:?}"))?;
        Ok::<_, String>((tokens as usize).max(1))
    };
    let at = Duration::from_millis(number("timestamp")?);
    let (prompt_tokens, output_tokens) = (tokens("input_length")?, tokens("output_length")?);
    let ids = object.get("hash_ids").and_then(Value::as_array).ok_or("no list \"hash_ids\"")?;
    let full = prompt_tokens / BLOCK_SIZE.tokens();
    let ids = ids.iter().take(full).map(|id| id.as_u64().ok_or_else(|| format!("hash id {id}")));
    let local: Vec<_> = ids.map(|id| id.map(LocalHash)).collect::<std::result::Result<_, _>>()?;
    if local.len() < full {
        return Err(format!("{} hash ids for {prompt_tokens} tokens", local.len()));
    }
    let blocks = Arc::new(PromptBlocks::from_local(BLOCK_SIZE, local));
    Ok(TraceRequest { at, prompt_tokens, output_tokens, blocks })
}

/// Makes requests that have lengths as people's conversations do: most are short, a few very long.
struct Made {
    random: Random,
    at_s: f64,
    gap_s: f64,
    next_block: u64,
}

impl Made {
    fn new(per_s: f64, seed: u64) -> Self {
        Self { random: Random::new(seed), at_s: 0.0, gap_s: 1.0 / per_s, next_block: HOT_MAX }
    }

    fn request(&mut self, prefix_blocks: usize) -> TraceRequest {
        self.at_s += -self.uniform().ln() * self.gap_s;
        let own_blocks = self.long_tailed(8);
        let prefix = (0..).take(prefix_blocks).map(LocalHash);
        let own = (self.next_block..).take(own_blocks).map(LocalHash);
        let local: Vec<_> = prefix.chain(own).collect();
        self.next_block += own_blocks as u64;
        TraceRequest {
            at: Duration::from_secs_f64(self.at_s),
            // A question behind what is hashed.
            prompt_tokens: local.len() * BLOCK_SIZE.tokens() + 100,
            output_tokens: self.long_tailed(100),
            blocks: Arc::new(PromptBlocks::from_local(BLOCK_SIZE, local)),
        }
    }

    /// Returns a number in (0, 1].
    fn uniform(&mut self) -> f64 {
        1.0 - (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns at least `least`, twice that in the median, and 20 times as much at most.
    fn long_tailed(&mut self, least: usize) -> usize {
        let times = (1.0 / self.uniform()).min(20.0);
        // As often as not twice `least`: a Pareto distribution of shape one.
        (1..=20).take_while(|step| f64::from(*step) <= times).count() * least
    }
}

/// Blocks of a shared prefix have smaller names than this, all others larger ones.
const HOT_MAX: u64 = 1 << 32;
