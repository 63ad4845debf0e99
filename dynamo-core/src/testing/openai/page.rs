use super::Played;
use super::record::AskedState;

impl Played {
    /// Returns the metrics page, with vLLM's names.
    pub(super) fn metrics(&self) -> String {
        let (queried, hits) = {
            let state = self.state();
            (state.queried, state.hits)
        };
        let (running, waiting, active) = self.records.read(|all| {
            let count = |state| all.iter().filter(|asked| asked.state == state).count();
            let active: usize = all.iter().map(|asked| asked.blocks).sum();
            (count(AskedState::Running), count(AskedState::Waiting), active)
        });
        let (blocks, block_size) = (self.script.blocks, self.script.block_size);
        let usage = share(active, blocks);
        let labels = format!("engine=\"0\",model_name=\"{}\"", self.script.model);
        format!(
            "# HELP vllm:num_requests_running Requests being computed.\n\
             # TYPE vllm:num_requests_running gauge\n\
             vllm:num_requests_running{{{labels}}} {running}.0\n\
             # TYPE vllm:num_requests_waiting gauge\n\
             vllm:num_requests_waiting{{{labels}}} {waiting}.0\n\
             # TYPE vllm:kv_cache_usage_perc gauge\n\
             vllm:kv_cache_usage_perc{{{labels}}} {usage}\n\
             # TYPE vllm:prefix_cache_queries_total counter\n\
             vllm:prefix_cache_queries_total{{{labels}}} {queried}.0\n\
             # TYPE vllm:prefix_cache_hits_total counter\n\
             vllm:prefix_cache_hits_total{{{labels}}} {hits}.0\n\
             # TYPE vllm:cache_config_info gauge\n\
             vllm:cache_config_info{{block_size=\"{block_size}\",engine=\"0\",\
             num_gpu_blocks=\"{blocks}\"}} 1.0\n"
        )
    }
}

/// Returns how much of `all` that is, from 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "counts of blocks are far below 2^52")]
fn share(part: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { (part as f64 / all as f64).min(1.0) }
}
