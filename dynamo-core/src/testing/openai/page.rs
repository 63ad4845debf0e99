use serde_json::json;

use super::record::AskedState;
use super::{MetricsOf, Played};

/// What a metrics page tells.
struct Page<'a> {
    model: &'a str,
    block_tokens: usize,
    running: usize,
    waiting: usize,
    blocks_active: usize,
    blocks_total: usize,
    /// Prompt tokens that were looked for in the cache, and those that were found.
    queried: u64,
    hits: u64,
}

impl Played {
    /// Returns the type and the text of the metrics page at `path`, if there is one.
    pub(super) fn metrics(&self, path: &str) -> Option<(&'static str, String)> {
        let page = self.page();
        let text = "text/plain; version=0.0.4; charset=utf-8";
        match (self.script.metrics, path) {
            (MetricsOf::Vllm, "/metrics") => Some((text, page.vllm())),
            (MetricsOf::Sglang, "/metrics") => Some((text, page.sglang())),
            (MetricsOf::TensorRtLlm, "/metrics") => Some(("application/json", page.iterations())),
            (MetricsOf::TensorRtLlm, "/prometheus/metrics") => Some((text, page.tensor_rt_llm())),
            _ => None,
        }
    }

    fn page(&self) -> Page<'_> {
        let (queried, hits) = {
            let state = self.state();
            (state.queried, state.hits)
        };
        self.records.read(|all| {
            let count = |state| all.iter().filter(|asked| asked.state == state).count();
            Page {
                model: &self.script.model,
                block_tokens: self.script.block_size.tokens(),
                running: count(AskedState::Running),
                waiting: count(AskedState::Waiting),
                blocks_active: all.iter().map(|asked| asked.blocks).sum(),
                blocks_total: self.script.blocks,
                queried,
                hits,
            }
        })
    }
}

impl Page<'_> {
    fn vllm(&self) -> String {
        let Self { block_tokens, blocks_total, .. } = self;
        let cache = format!(
            "vllm:cache_config_info{{block_size=\"{block_tokens}\",engine=\"0\",\
             num_gpu_blocks=\"{blocks_total}\"}} 1.0\n"
        );
        let gauges = self.gauges(
            "engine=\"0\",",
            &[
                ("vllm:num_requests_running", self.running as f64),
                ("vllm:num_requests_waiting", self.waiting as f64),
                ("vllm:kv_cache_usage_perc", self.usage()),
                ("vllm:prefix_cache_queries_total", self.queried as f64),
                ("vllm:prefix_cache_hits_total", self.hits as f64),
            ],
        );
        gauges + &cache
    }

    fn sglang(&self) -> String {
        let tokens = self.blocks_total * self.block_tokens;
        self.gauges(
            "engine_type=\"unified\",tp_rank=\"0\",pp_rank=\"0\",",
            &[
                ("sglang:num_running_reqs", self.running as f64),
                ("sglang:num_queue_reqs", self.waiting as f64),
                ("sglang:token_usage", self.usage()),
                ("sglang:max_total_num_tokens", tokens as f64),
            ],
        )
    }

    fn tensor_rt_llm(&self) -> String {
        self.gauges(
            "engine_type=\"trtllm\",",
            &[
                ("trtllm_num_requests_running", self.running as f64),
                ("trtllm_num_requests_waiting", self.waiting as f64),
                ("trtllm_kv_cache_used_blocks", self.blocks_active as f64),
                ("trtllm_kv_cache_max_blocks", self.blocks_total as f64),
            ],
        )
    }

    fn iterations(&self) -> String {
        let cache = json!({
            "maxNumBlocks": self.blocks_total,
            "usedNumBlocks": self.blocks_active,
            "tokensPerBlock": self.block_tokens,
        });
        let iteration = json!({
            "iter": 1,
            "numActiveRequests": self.running,
            "numQueuedRequests": self.waiting,
            "kvCacheStats": cache,
        });
        json!([iteration]).to_string()
    }

    fn gauges(&self, labels: &str, gauges: &[(&str, f64)]) -> String {
        let model = self.model;
        let gauges = gauges.iter().map(|(name, value)| {
            format!("# TYPE {name} gauge\n{name}{{{labels}model_name=\"{model}\"}} {value:?}\n")
        });
        gauges.collect()
    }

    fn usage(&self) -> f64 {
        (self.blocks_active as f64 / self.blocks_total.max(1) as f64).min(1.0)
    }
}
