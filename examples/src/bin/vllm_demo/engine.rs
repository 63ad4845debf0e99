//! One vLLM server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_examples::client;
use dynamo_examples::servers::free_port;
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::args::Args;
use crate::process::Process;

/// A vLLM server on loopback.
#[derive(Debug)]
pub(crate) struct VllmServer {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Where it publishes its KV events, and where it repeats them.
    pub(crate) events: String,
    pub(crate) replay: String,
}

/// What a server has counted of its prefix cache since it started, in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheCount {
    pub(crate) hits: f64,
    pub(crate) queries: f64,
}

impl VllmServer {
    /// Starts a server, which needs half a minute until it is [ready](Self::ready).
    pub(crate) fn start(name: &str, args: &Args, folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let socket = |kind| -> PathBuf { folder.join(format!("{name}.{kind}")) };
        // vLLM listens at such an endpoint; at `tcp://*` it would for the whole network.
        let endpoint = |kind| format!("ipc://{}", socket(kind).display());
        let (events, replay) = (endpoint("events"), endpoint("replay"));
        let published = json!({
            "enable_kv_cache_events": true, "publisher": "zmq", "topic": TOPIC,
            "endpoint": events, "replay_endpoint": replay,
        });
        let mut command = Command::new(&args.python);
        command.args(["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]);
        command.args(["--port", &port.to_string(), "--served-model-name", MODEL, "--model"]);
        command.arg(&args.model);
        command.args(["--dtype", "float32", "--max-model-len", CONTEXT_LEN, "--enforce-eager"]);
        command.args(["--block-size", BLOCK_SIZE, "--enable-prefix-caching"]);
        command.args(["--enable-prompt-tokens-details"]);
        command.args(["--kv-events-config", &published.to_string()]);
        command.envs(ENVIRONMENT);
        let process = Process::start(name, command, folder)?;
        Ok(Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), events, replay })
    }

    pub(crate) fn name(&self) -> &str {
        self.process.name()
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let address = self.address;
        let is_ready = async || client::request(address, "GET", "/health", None).await.is_ok();
        self.process.ready(STARTING_MAX, is_ready).await
    }

    /// Has it compute a prompt, past the front end: the first one is slower than all others.
    pub(crate) async fn warm_up(&self) -> Result<()> {
        let prompt: Vec<u32> = (1000..1600).collect();
        self.complete(&prompt).await
    }

    /// Has it forget all blocks, and say so.
    pub(crate) async fn reset(&self) -> Result<()> {
        for _ in 0..RESETS_MAX {
            if has_forgotten(&self.ask("POST", "/reset_prefix_cache", None).await?)? {
                // vLLM tells what changed with the next step it makes. Less than a block is not
                // kept.
                return self.complete(&[1000]).await;
            }
            sleep(RESET_EVERY).await;
        }
        bail!("{} keeps its blocks: it refused {RESETS_MAX} resets", self.name())
    }

    /// Returns what it has counted of its prefix cache.
    pub(crate) async fn cache_count(&self) -> Result<CacheCount> {
        let metrics = self.ask("GET", "/metrics", None).await?;
        let hits = metric(&metrics, "vllm:prefix_cache_hits_total")?;
        Ok(CacheCount { hits, queries: metric(&metrics, "vllm:prefix_cache_queries_total")? })
    }

    /// Returns how many requests it computes.
    pub(crate) async fn running(&self) -> Result<f64> {
        let metrics = self.ask("GET", "/metrics", None).await?;
        metric(&metrics, "vllm:num_requests_running")
    }

    async fn complete(&self, prompt: &[u32]) -> Result<()> {
        let body = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 1 });
        self.ask("POST", "/v1/completions", Some(&body)).await?;
        Ok(())
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<String> {
        let answer = timeout(ANSWER_MAX, client::request(self.address, method, path, body)).await;
        let name = self.name();
        answer.with_context(|| format!("{name} does not answer {path}"))?.context(name.to_owned())
    }
}

/// Reads the answer to a reset. vLLM refuses one, with success in HTTP, while a request holds blocks,
/// a canary of the sidecar too.
fn has_forgotten(answer: &str) -> Result<bool> {
    #[derive(Deserialize)]
    struct Reset {
        success: bool,
    }
    let reset: Reset =
        serde_json::from_str(answer).with_context(|| format!("what a reset came to: {answer}"))?;
    Ok(reset.success)
}

/// Returns the sum of a metric's samples.
fn metric(metrics: &str, name: &str) -> Result<f64> {
    let samples = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let values: Vec<f64> =
        samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    if values.is_empty() { None } else { Some(values.iter().sum()) }
        .with_context(|| format!("vLLM reports no {name}"))
}

/// The name that servers and front end know the model by.
pub(crate) const MODEL: &str = "smollm2-135m-instruct";

/// Tokens; attention on the CPU takes multiples of this.
pub(crate) const BLOCK_SIZE: &str = "32";

/// Tokens of a prompt and its answer.
pub(crate) const CONTEXT_LEN: &str = "2048";

pub(crate) const TOPIC: &str = "kv";

/// One thread each: two servers share a small machine. Of the KV cache 1 GiB, 23,000 tokens.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("VLLM_TARGET_DEVICE", "cpu"),
    ("VLLM_CPU_KVCACHE_SPACE", "1"),
    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
    ("OMP_NUM_THREADS", "1"),
    // Without it there is no `/reset_prefix_cache`.
    ("VLLM_SERVER_DEV_MODE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("HF_HUB_OFFLINE", "1"),
];

const STARTING_MAX: Duration = Duration::from_secs(300);

const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A canary is over long before the last of them.
const RESETS_MAX: usize = 20;

const RESET_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_that_vllm_refuses_has_not_forgotten() {
        assert!(has_forgotten("{\"success\":true}").unwrap());
        assert!(!has_forgotten("{\"success\":false}").unwrap());
        let other = has_forgotten("{}").unwrap_err();
        assert!(other.to_string().ends_with("{}"), "{other}");
    }

    #[test]
    fn a_metric_is_the_sum_of_its_samples_and_of_no_other_metric() {
        let page = "# TYPE vllm:prefix_cache_hits_total counter\n\
            vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 64.0\n\
            vllm:prefix_cache_hits_total{engine=\"1\",model_name=\"m\"} 1.6e+01\n\
            vllm:prefix_cache_hits_total_created{engine=\"0\"} 1.7e+09\n\
            vllm:external_prefix_cache_hits_total{engine=\"0\"} 5.0\n";
        assert_eq!(metric(page, "vllm:prefix_cache_hits_total").unwrap(), 80.0);
        let missing = metric(page, "vllm:prefix_cache_queries_total").unwrap_err();
        assert!(missing.to_string().contains("vllm:prefix_cache_queries_total"), "{missing}");
    }
}
