//! The arguments of the front end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_core::protocol::BlockSize;
use dynamo_examples::front_end::{FrontEndConfig, Routing};
use dynamo_router::RouterConfig;

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) etcd: String,
    pub(crate) nats: String,
    /// The folder of the model: tokenizer, chat template, limits.
    pub(crate) model_dir: PathBuf,
    /// The name that clients ask for, and that the workers' caches are known by.
    pub(crate) model: String,
    pub(crate) listen: SocketAddr,
    /// Tokens per KV block of the engines.
    pub(crate) block_size: BlockSize,
    /// Tokens of the longest sequence that the engines take, if that is less than the model's.
    pub(crate) context_max: usize,
    namespace: String,
    component: String,
    routing: Routing,
    workers: usize,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut etcd, mut nats, mut component) = (None, None, None);
        let (mut model_dir, mut model, mut listen, mut block_size) = (None, None, None, None);
        let (mut routing, mut workers, mut context_max) = (Routing::Kv, 1, usize::MAX);
        while let Some(arg) = args.next() {
            let value = args.next().with_context(|| format!("{arg} needs a value; {USAGE}"))?;
            match arg.as_str() {
                "--etcd" => etcd = Some(value),
                "--nats" => nats = Some(value),
                "--component" => component = Some(value),
                "--model-dir" => model_dir = Some(PathBuf::from(value)),
                "--model" => model = Some(value),
                "--listen" => {
                    let address = value.parse::<SocketAddr>();
                    listen = Some(address.with_context(|| format!("--listen {value}"))?);
                }
                "--router" => {
                    routing = match value.as_str() {
                        "kv" => Routing::Kv,
                        "round-robin" => Routing::RoundRobin,
                        other => bail!("--router {other}: there are kv and round-robin"),
                    }
                }
                "--block-size" => {
                    let size = BlockSize::new(number(&arg, &value)?);
                    block_size = Some(size.with_context(|| format!("--block-size {value}"))?);
                }
                "--workers" => workers = number(&arg, &value)?,
                "--context-len" => context_max = number(&arg, &value)?,
                other => bail!("unknown argument {other}; {USAGE}"),
            }
        }
        let component = component.with_context(|| missing("--component"))?;
        let (namespace, component) =
            component.split_once('/').context("--component takes NAMESPACE/COMPONENT")?;
        Ok(Self {
            etcd: etcd.with_context(|| missing("--etcd"))?,
            nats: nats.with_context(|| missing("--nats"))?,
            model_dir: model_dir.with_context(|| missing("--model-dir"))?,
            model: model.with_context(|| missing("--model"))?,
            listen: listen.with_context(|| missing("--listen"))?,
            block_size: block_size.with_context(|| missing("--block-size"))?,
            context_max,
            namespace: namespace.to_owned(),
            component: component.to_owned(),
            routing,
            workers,
        })
    }

    pub(crate) fn front_end(&self) -> FrontEndConfig {
        FrontEndConfig {
            namespace: self.namespace.clone(),
            component: self.component.clone(),
            routing: self.routing,
            router: RouterConfig::default(),
            workers: self.workers,
            workers_wait_max: WORKERS_WAIT_MAX,
        }
    }
}

fn missing(arg: &str) -> String {
    format!("{arg} is missing; {USAGE}")
}

fn number<N: FromStr + Default + PartialEq>(arg: &str, value: &str) -> Result<N> {
    let number = value.parse().ok().filter(|number| *number != N::default());
    number.with_context(|| format!("{arg} takes a number from 1 on, not {value}"))
}

/// An engine loads its model before its sidecar registers it.
const WORKERS_WAIT_MAX: Duration = Duration::from_secs(300);

const USAGE: &str = "usage: front_end --etcd URL --nats URL --component NAMESPACE/COMPONENT \
    --model-dir DIR --model NAME --listen ADDRESS:PORT --block-size TOKENS \
    [--router kv|round-robin] [--workers N] [--context-len TOKENS]";
