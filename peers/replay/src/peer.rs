//! The peer's replay over its own fleet.

use std::path::Path;

use anyhow::Result;
use dynamo_kv_router::config::KvRouterConfig;
use dynamo_mocker::config::MockerConfig;
use dynamo_mocker::replay::{ReplayRouterMode, simulate_trace_file_with_router_mode};
use serde_json::json;

use crate::compare::Figures;

/// Who chooses in the peer's fleet.
#[derive(Clone, Copy)]
pub enum Chooser {
    RoundRobin,
    /// Its router as it is by default.
    Default,
    /// Its router with the weight of prefill that does best on the trace we know.
    Tuned,
}

impl Chooser {
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "dynamo round robin",
            Self::Default => "dynamo default",
            Self::Tuned => "dynamo tuned",
        }
    }

    /// Replays the trace in the file at `load` times its rate over `workers` of 1 M tokens each.
    pub fn replay(self, trace: &Path, load: f64, workers: usize) -> Result<Figures> {
        let engine = MockerConfig::from_value(json!({ "engine": {
            "backend": "vllm",
            "block_size": BLOCK_TOKENS,
            "num_gpu_blocks": (1 << 20) / BLOCK_TOKENS,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
        }}))?;
        let (mode, config) = match self {
            Self::RoundRobin => (ReplayRouterMode::RoundRobin, None),
            Self::Default => (ReplayRouterMode::KvRouter, Some(KvRouterConfig::default())),
            Self::Tuned => {
                let config = KvRouterConfig { prefill_load_scale: 32.0, ..Default::default() };
                (ReplayRouterMode::KvRouter, Some(config))
            }
        };
        let report = simulate_trace_file_with_router_mode(
            engine,
            config,
            None,
            trace,
            BLOCK_TOKENS,
            workers,
            load,
            mode,
        )?;
        let latency = report.latency;
        Ok(Figures {
            reuse: report.prefix_cache_reused_ratio * 100.0,
            ttft_mean: latency.ttft.mean_ms,
            ttft_p50: latency.ttft.median_ms,
            ttft_p99: latency.ttft.p99_ms,
            tpot_p99: latency.tpot.p99_ms,
            e2e_mean: latency.e2e.mean_ms,
        })
    }
}

const BLOCK_TOKENS: usize = 512;
