//! What metrics pages tell of an engine's load: the names, whose they are, and what they count.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::exposition::{Sample, samples};
use crate::protocol::BlockSize;

/// What one data-parallel rank is busy with; blocks are those of the reports, unless a server tells
/// of blocks and not how large they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RankLoad {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) blocks_active: u64,
    pub(super) blocks_total: u64,
}

/// Reads a page as text of Prometheus, or as TensorRT-LLM's JSON; ranks that it does not tell of are
/// not there.
pub(super) fn ranks(page: &[u8], block_size: BlockSize) -> BTreeMap<u32, RankLoad> {
    if page.trim_ascii_start().starts_with(b"[") {
        return iterations(page, block_size);
    }
    let mut ranks: BTreeMap<u32, RankGauges> = BTreeMap::new();
    for sample in samples(&String::from_utf8_lossy(page)) {
        let Some((gauge, value)) = gauge(&sample) else { continue };
        let rank = rank(&sample);
        if ranks.len() < RANKS_MAX || ranks.contains_key(&rank) {
            ranks.entry(rank).or_default().see(gauge, value);
        }
    }
    let loads = ranks.iter().filter_map(|(rank, seen)| Some((*rank, seen.load(block_size)?)));
    loads.collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gauge {
    Running,
    Waiting,
    /// The share of the cache that running requests hold, from 0 to 1.
    Usage,
    BlocksActive,
    BlocksTotal,
    TokensTotal,
}

/// The gauges of vLLM (0.32; `gpu_cache_usage_perc` is that of before 0.10), SGLang and TensorRT-LLM.
const GAUGES: [(&str, Gauge); 13] = [
    ("vllm:num_requests_running", Gauge::Running),
    ("vllm:num_requests_waiting", Gauge::Waiting),
    ("vllm:kv_cache_usage_perc", Gauge::Usage),
    ("vllm:gpu_cache_usage_perc", Gauge::Usage),
    ("sglang:num_running_reqs", Gauge::Running),
    ("sglang:num_queue_reqs", Gauge::Waiting),
    ("sglang:token_usage", Gauge::Usage),
    ("sglang:max_total_num_tokens", Gauge::TokensTotal),
    ("trtllm_num_requests_running", Gauge::Running),
    ("trtllm_num_requests_waiting", Gauge::Waiting),
    ("trtllm_kv_cache_utilization", Gauge::Usage),
    ("trtllm_kv_cache_used_blocks", Gauge::BlocksActive),
    ("trtllm_kv_cache_max_blocks", Gauge::BlocksTotal),
];

/// vLLM tells how large its cache is by labels of something that is always 1.
const VLLM_CACHE: &str = "vllm:cache_config_info";

fn gauge(sample: &Sample<'_>) -> Option<(Gauge, f64)> {
    let (gauge, value) = if sample.name == VLLM_CACHE {
        cache_size(sample)?
    } else {
        let (_, gauge) = GAUGES.iter().find(|(name, _)| *name == sample.name)?;
        (*gauge, sample.value)
    };
    // A gauge that was never set may be NaN.
    (0.0..=COUNT_MAX).contains(&value).then_some((gauge, value))
}

/// Returns what a vLLM's cache holds, in its own blocks only if it does not tell their size.
fn cache_size(sample: &Sample<'_>) -> Option<(Gauge, f64)> {
    let label = |name| sample.label(name)?.parse::<u32>().ok().map(f64::from);
    let blocks = label("num_gpu_blocks")?;
    Some(match label("block_size") {
        Some(tokens) => (Gauge::TokensTotal, blocks * tokens),
        None => (Gauge::BlocksTotal, blocks),
    })
}

/// Returns the data-parallel rank that a sample is of: vLLM's label, or SGLang's.
fn rank(sample: &Sample<'_>) -> u32 {
    let label = sample.label("engine").or_else(|| sample.label("dp_rank"));
    label.and_then(|rank| rank.parse().ok()).unwrap_or(0)
}

/// The largest sample of each gauge of a rank.
///
/// SGLang tells the same of each tensor-parallel rank, and with priorities also of each of them
/// beside the whole: the sum would count requests twice.
#[derive(Debug, Default)]
struct RankGauges {
    running: Option<f64>,
    waiting: Option<f64>,
    usage: Option<f64>,
    blocks_active: Option<f64>,
    blocks_total: Option<f64>,
    tokens_total: Option<f64>,
}

impl RankGauges {
    fn see(&mut self, gauge: Gauge, value: f64) {
        let seen = match gauge {
            Gauge::Running => &mut self.running,
            Gauge::Waiting => &mut self.waiting,
            Gauge::Usage => &mut self.usage,
            Gauge::BlocksActive => &mut self.blocks_active,
            Gauge::BlocksTotal => &mut self.blocks_total,
            Gauge::TokensTotal => &mut self.tokens_total,
        };
        *seen = Some(seen.map_or(value, |before| before.max(value)));
    }

    /// Returns the load, if at least the requests were told.
    fn load(&self, block_size: BlockSize) -> Option<RankLoad> {
        let tokens = self.tokens_total.map(|tokens| tokens / block_size.tokens() as f64);
        let blocks_total = self.blocks_total.or(tokens).unwrap_or(0.0).floor();
        let used = self.usage.map(|usage| usage.min(1.0) * blocks_total);
        let blocks_active = self.blocks_active.or(used).unwrap_or(0.0);
        Some(RankLoad {
            running: u32::try_from(whole(self.running?)).unwrap_or(u32::MAX),
            waiting: u32::try_from(whole(self.waiting?)).unwrap_or(u32::MAX),
            blocks_active: whole(blocks_active),
            blocks_total: whole(blocks_total),
        })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^53")]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

/// One iteration as `trtllm-serve` tells it at `/metrics`; each look at the page takes what has
/// run since the one before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Iteration {
    num_active_requests: u32,
    num_queued_requests: Option<u32>,
    attention_dp_rank: Option<u32>,
    kv_cache_stats: Option<KvCacheStats>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KvCacheStats {
    used_num_blocks: u32,
    max_num_blocks: u32,
    tokens_per_block: Option<u32>,
}

/// Returns the last iteration of each rank. No iteration says nothing: one that takes long looks
/// like none, and so does a server that keeps no statistics.
fn iterations(page: &[u8], block_size: BlockSize) -> BTreeMap<u32, RankLoad> {
    let iterations: Vec<Iteration> = serde_json::from_slice(page).unwrap_or_default();
    let mut ranks = BTreeMap::new();
    for iteration in iterations {
        let cache = iteration.kv_cache_stats.unwrap_or_default();
        let per_block = cache
            .tokens_per_block
            .map_or(1.0, |tokens| f64::from(tokens) / block_size.tokens() as f64);
        let load = RankLoad {
            running: iteration.num_active_requests,
            waiting: iteration.num_queued_requests.unwrap_or(0),
            blocks_active: whole(f64::from(cache.used_num_blocks) * per_block),
            blocks_total: whole(f64::from(cache.max_num_blocks) * per_block),
        };
        let rank = iteration.attention_dp_rank.unwrap_or(0);
        if ranks.len() < RANKS_MAX || ranks.contains_key(&rank) {
            ranks.insert(rank, load);
        }
    }
    ranks
}

/// More than engines have; a page that tells of more is none of theirs.
pub(super) const RANKS_MAX: usize = 1024;

/// 2^53: up to here a gauge can count.
const COUNT_MAX: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests;
