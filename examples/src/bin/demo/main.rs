//! The main job: a real model served disaggregated, in one process, behind HTTP.
#![expect(clippy::print_stdout, reason = "the demo talks to a person")]

mod args;
mod conversation;
#[cfg_attr(not(feature = "processes"), path = "no_processes.rs")]
mod processes;
mod report;
mod screen;
mod tap;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_core::protocol::TokenId;
use dynamo_core::{Context, Engine};
use dynamo_examples::client;
use dynamo_examples::engine::WorkerOptions;
use dynamo_examples::graph::{Graph, GraphConfig};
use dynamo_examples::model::{Loaded, Model};
use dynamo_examples::openai::{self, Server};
use dynamo_examples::text::ModelText;
use dynamo_router::DisaggReport;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use args::Args;
use conversation::Turn;
use processes::Processes;
use screen::{Line, Screen};
use tap::{Heard, Tap};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse(std::env::args().skip(1))?;
    let (model, text) = load(&args)?;
    let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
    let screen = Screen::new();
    let config = GraphConfig {
        blocks: args.host_blocks.unwrap_or_else(|| GraphConfig::default().blocks),
        disk: args.disk.clone(),
        worker: WorkerOptions { on_progress: screen.prefills(), ..args.worker_options() },
        router: args.router.clone(),
        ..GraphConfig::default()
    };
    if let Some(worker) = &args.worker {
        let config = GraphConfig { worker: args.worker_options(), ..config };
        processes::work(worker, &model, args.backend.as_deref(), &config).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut others = None;
    let graph = if args.aggregated {
        println!("graph: HTTP -> 1 aggregated worker");
        Graph::aggregated(&model, &config).await?
    } else {
        println!("graph: HTTP -> KvRouter -> 2 prefill workers -> KV hand-off -> 2 decode workers");
        let (sink, is_kept) = (Arc::clone(&reports), !args.serve);
        let observer = move |report: &DisaggReport| {
            // A server that runs for ever keeps nothing for a table that it never prints.
            if is_kept {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(report.clone());
            }
        };
        if args.processes {
            println!("each in a process of its own, with etcd and NATS between them");
            let (mut processes, runtime) = Processes::start().await?;
            for name in ["prefill-0", "prefill-1", "decode-0", "decode-1"] {
                processes.worker(name, &args)?;
            }
            others = Some(processes);
            Graph::front_end(runtime, &config.router, 2, 2, observer).await?
        } else {
            Graph::disaggregated(&model, 2, 2, &config, observer).await?
        }
    };
    let tap = Tap::new(graph.engine());
    let engine = if args.serve { graph.engine() } else { Arc::new(tap.clone()) };
    let name = text.0.clone();
    let server =
        Server::new(engine, Arc::new(text.1), config.block_size).with_readiness(graph.readiness());
    let port = args.port.unwrap_or(if args.serve { SERVE_PORT } else { 0 });
    let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listening")?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let http = openai::serve(
        listener,
        server.into_router(),
        async {
            // A dropped sender stops the server as well.
            let _ = stopped.await;
        },
        PATIENCE,
    );
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(http);
    println!("serving {name} at http://{address}/v1\n");

    let outcome = if args.serve {
        println!("{}\n\nEnd with Ctrl-C.", curl(address, &name));
        tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")?;
        Ok(ExitCode::SUCCESS)
    } else {
        let turns = match args.prompt {
            Some(prompt) => conversation::single(prompt),
            None => conversation::turns(),
        };
        let stage = Stage { address, name: &name, tap: &tap, graph: &graph, reports: &reports };
        stage.converse(&turns, &model, &config).await
    };
    drop(stop);
    while let Some(ended) = tasks.join_next().await {
        ended.context("HTTP server")?.context("HTTP server")?;
    }
    graph.shutdown(PATIENCE).await?;
    if let Some(others) = others {
        others.end().await?;
    }
    outcome
}

/// Loads the model with a progress line.
fn load(args: &Args) -> Result<(Arc<Model>, (String, ModelText))> {
    let path = &args.model;
    println!("model: {}", path.display());
    let loading = Line::new();
    let loaded = Loaded::read(path, &mut |done, total| {
        loading.show(&format!("loading {done}/{total} tensors"));
    })
    .with_context(|| format!("loading {}", path.display()))?;
    loading.clear();
    let config = loaded.model.config().clone();
    let name = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy());
    let name = name.split(".Q").next().unwrap_or_default().to_owned();
    let defaults = GraphConfig::default();
    // Who asks for little memory gets one long sequence into it, others two.
    let blocks = args.host_blocks.unwrap_or(defaults.blocks / 2);
    let context_len = config.context.min(blocks * defaults.block_size.tokens());
    let text = ModelText::new(&name, context_len, loaded.tokenizer, loaded.template);
    Ok((Arc::new(loaded.model), (name, text)))
}

/// What the demo talks to.
struct Stage<'a> {
    address: SocketAddr,
    name: &'a str,
    tap: &'a Tap,
    graph: &'a Graph,
    reports: &'a Mutex<Vec<DisaggReport>>,
}

impl Stage<'_> {
    /// Sends the turns, twice if there is a disk to find them on again, prints the tables, and compares
    /// with one aggregated worker.
    async fn converse(
        &self,
        turns: &[Turn],
        model: &Arc<Model>,
        config: &GraphConfig,
    ) -> Result<ExitCode> {
        let mut passes = Vec::new();
        for pass in 1..=if config.disk.is_some() { 2 } else { 1 } {
            if config.disk.is_some() {
                println!("pass {pass}\n");
            }
            let requests = self.say(turns).await?;
            if self.graph.routers().is_empty() {
                println!("aggregated: {} of {} prompts answered", requests.len(), turns.len());
            } else {
                let settled = self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
                report::print(&requests, &settled, self.graph);
                report::explain(&requests, &settled);
            }
            println!();
            passes.push(requests);
        }
        let (first, again) = passes.split_first().context("there is a first pass")?;
        let (total, mut failed) = (turns.len(), false);
        if let Some(second) = again.first() {
            let tiers = self.graph.workers().iter().filter_map(|its| its.worker.manager().tiers());
            let ahead: u64 = tiers.map(|tiers| tiers.prefetched_total).sum();
            println!("{ahead} blocks came from disk while their request waited for its turn");
            let mut identical = 0;
            for (one, other) in first.iter().zip(second) {
                identical +=
                    usize::from(self.heard(one)?.token_ids == self.heard(other)?.token_ids);
            }
            println!("pass 2 = pass 1: {identical}/{total} answers identical");
            failed |= identical != total;
        }
        if !self.graph.routers().is_empty() {
            let identical = self.compare(first, model, config).await?;
            println!("disaggregated = aggregated: {identical}/{total} answers identical");
            failed |= identical != total;
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Sends the turns and prints the answers; returns the requests.
    async fn say(&self, turns: &[Turn]) -> Result<Vec<String>> {
        let mut histories: Vec<Vec<Value>> = Vec::new();
        let mut requests = Vec::new();
        let mut index = 0;
        while index < turns.len() {
            let together =
                turns[index + 1..].iter().take_while(|turn| turn.with_previous).count() + 1;
            let mut sent = Vec::new();
            for (offset, turn) in turns[index..index + together].iter().enumerate() {
                let mut messages =
                    turn.follows.map_or_else(Vec::new, |turn| histories[turn].clone());
                if let Some(system) = turn.system {
                    messages.push(json!({ "role": "system", "content": system }));
                }
                messages.push(json!({ "role": "user", "content": turn.user }));
                println!("[{}] {}", index + offset + 1, turn.user);
                sent.push((messages, turn.max_tokens));
            }
            let live = together == 1;
            let calls = sent.iter().map(|(messages, max_tokens)| async move {
                client::chat(self.address, self.name, messages, *max_tokens, |text| {
                    if live {
                        print!("{text}");
                        let _ = std::io::stdout().flush();
                    }
                })
                .await
            });
            let answers = futures::future::try_join_all(calls).await?;
            for ((mut messages, _), answer) in sent.into_iter().zip(answers) {
                println!("{}\n", if live { "" } else { answer.text.as_str() });
                messages.push(json!({ "role": "assistant", "content": answer.text }));
                histories.push(messages);
                requests.push(answer.request);
            }
            index += together;
        }
        Ok(requests)
    }

    /// Sends the same prompts through one aggregated worker; returns how many answers are identical.
    async fn compare(
        &self,
        requests: &[String],
        model: &Arc<Model>,
        config: &GraphConfig,
    ) -> Result<usize> {
        println!("the same prompts through one aggregated worker:");
        let worker = WorkerOptions::default();
        let single = GraphConfig { worker, disk: None, ..config.clone() };
        let single = Graph::aggregated(model, &single).await?;
        let mut identical = 0;
        for request in requests {
            let heard = self.heard(request)?;
            let stream = single.engine().generate(Context::new(), heard.request).await?;
            let chunks = stream.collect().await?;
            let tokens: Vec<TokenId> =
                chunks.into_iter().flat_map(|chunk| chunk.token_ids).collect();
            identical += usize::from(tokens == heard.token_ids);
        }
        single.shutdown(PATIENCE).await?;
        Ok(identical)
    }

    fn heard(&self, request: &str) -> Result<Heard> {
        self.tap.heard(request).with_context(|| format!("request {request} not heard"))
    }
}

fn curl(address: SocketAddr, name: &str) -> String {
    let body = json!({
        "model": name, "stream": true, "max_tokens": 64,
        "messages": [{ "role": "user", "content": "Write one sentence about the sea." }],
    });
    format!(
        "curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d '{body}'"
    )
}

const SERVE_PORT: u16 = 8080;

/// Longer than the demo's longest answer.
const PATIENCE: Duration = Duration::from_secs(30);
