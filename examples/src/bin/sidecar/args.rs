//! The arguments of the sidecar.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_core::openai::{OpenAiConfig, TokenSource};
use dynamo_core::protocol::BlockSize;
use dynamo_core::request_plane::TcpConfig;
use dynamo_examples::planes;
use dynamo_examples::sidecar::{EventsConfig, SidecarConfig};

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) etcd: String,
    pub(crate) nats: String,
    /// Where requests come.
    pub(crate) tcp: TcpConfig,
    /// How long requests in flight may take once the end is asked for.
    pub(crate) drain: Duration,
    pub(crate) sidecar: SidecarConfig,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut engine, mut model, mut name, mut component) = (None, None, None, None);
        let (mut etcd, mut nats, mut drain_s) = (None, None, DRAIN_S);
        let (mut tcp, mut canary_s) = (planes::on_loopback(), None);
        let (mut events, mut replay, mut topic, mut is_bound) = (None, None, String::new(), false);
        let (mut tokens, mut api_key, mut metrics) = (TokenSource::TokenIds, None, None);
        let (mut block_size, mut end_tokens, mut ranks) = (None, Vec::new(), NonZeroU32::MIN);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value; {USAGE}"));
            match arg.as_str() {
                "--bind-events" => is_bound = true,
                "--plaintext" => tcp = tcp.with_plaintext_allowed(),
                "--engine" => engine = Some(value()?),
                "--model" => model = Some(value()?),
                "--name" => name = Some(value()?),
                "--component" => component = Some(value()?),
                "--etcd" => etcd = Some(value()?),
                "--nats" => nats = Some(value()?),
                "--listen" => tcp = tcp.with_listen(parsed(&arg, &value()?)?),
                "--advertise" => tcp = tcp.with_advertise(parsed(&arg, &value()?)?),
                "--canary-s" => canary_s = Some(parsed(&arg, &value()?)?),
                "--block-size" => block_size = Some(parsed(&arg, &value()?)?),
                "--tokens" => tokens = token_source(&value()?)?,
                "--api-key-file" => api_key = Some(key(&value()?)?),
                "--metrics" => metrics = Some(value()?),
                "--ranks" => ranks = parsed(&arg, &value()?)?,
                "--events" => events = Some(value()?),
                "--replay" => replay = Some(value()?),
                "--topic" => topic = value()?,
                "--end-token" => end_tokens.push(parsed(&arg, &value()?)?),
                "--drain-s" => drain_s = parsed(&arg, &value()?)?,
                other => bail!("unknown argument {other}; {USAGE}"),
            }
        }
        if events.is_none() && (replay.is_some() || is_bound || !topic.is_empty()) {
            bail!("--replay, --topic and --bind-events go with --events; {USAGE}");
        }
        let given = |arg: &str, value: Option<String>| {
            value.with_context(|| format!("{arg} is missing; {USAGE}"))
        };
        let component = given("--component", component)?;
        let (namespace, component) =
            component.split_once('/').context("--component takes NAMESPACE/COMPONENT")?;
        let engine = OpenAiConfig::new(given("--engine", engine)?, given("--model", model)?)
            .with_tokens(tokens)
            .with_end_tokens(end_tokens);
        let engine = match api_key {
            Some(key) => engine.with_api_key(key),
            None => engine,
        };
        let mut sidecar = SidecarConfig::new(engine, namespace, component, given("--name", name)?);
        (sidecar.ranks, sidecar.metrics) = (ranks.get(), metrics);
        if let Some(tokens) = block_size {
            sidecar.block_size = BlockSize::new(tokens).context("--block-size takes 1 or more")?;
        }
        if let Some(seconds) = canary_s {
            sidecar.canary[1] = Duration::from_secs(seconds);
        }
        sidecar.events = events.map(|endpoint| EventsConfig { endpoint, replay, topic, is_bound });
        Ok(Self {
            etcd: given("--etcd", etcd)?,
            nats: given("--nats", nats)?,
            tcp,
            drain: Duration::from_secs(drain_s),
            sidecar,
        })
    }
}

fn token_source(value: &str) -> Result<TokenSource> {
    Ok(match value {
        "ids" => TokenSource::TokenIds,
        "without-text" => TokenSource::WithoutText,
        "logprobs" => TokenSource::Logprobs,
        other => bail!("--tokens {other}: there are ids, without-text and logprobs"),
    })
}

/// Reads a key from a file: arguments are seen by all processes.
fn key(path: &str) -> Result<String> {
    let key = std::fs::read_to_string(path).with_context(|| format!("--api-key-file {path}"))?;
    Ok(key.trim().to_owned())
}

fn parsed<T: FromStr>(arg: &str, value: &str) -> Result<T> {
    value.parse().ok().with_context(|| format!("{arg} does not take {value}"))
}

/// A long answer; whoever stops containers waits about as long.
const DRAIN_S: u64 = 30;

const USAGE: &str = "usage: sidecar --engine URL --model NAME --name NAME \
    --component NAMESPACE/COMPONENT --etcd URL --nats URL \
    [--listen ADDRESS:PORT] [--advertise ADDRESS:PORT] [--plaintext] [--canary-s SECONDS] \
    [--ranks N] [--block-size TOKENS] [--end-token ID]... [--drain-s SECONDS] \
    [--tokens ids|without-text|logprobs] [--api-key-file PATH] [--metrics PATH] \
    [--events ENDPOINT [--bind-events] [--replay ENDPOINT] [--topic TOPIC]]";
