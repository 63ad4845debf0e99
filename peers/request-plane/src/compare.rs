//! Who takes part in which workload, and the rows that come of it.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::child::Child;
use crate::model::Model;
use crate::table::{Metric, Table};
use crate::turn::{self, Measured, Subject, Turn};
use crate::{dynamo, grpc, nats, ours, raw};

/// Compares all, prints the rows, and writes them to `path`.
pub async fn run(path: Option<&str>) -> Result<()> {
    let model = Arc::<Model>::default();
    let server = nats::Server::start()?;
    let tcp = Arc::new(ours::tcp(&model).await?);
    let over_nats = Arc::new(ours::nats(&model, server.url()).await?);
    let here = |subject: Arc<dyn Subject>| Contender::Here(subject, Arc::clone(&model));
    let contenders = [
        (MEMORY, here(Arc::new(ours::memory(&model).await?))),
        (TCP, here(Arc::clone(&tcp) as Arc<dyn Subject>)),
        (SOCKET, here(Arc::new(raw::start().await?))),
        (NATS, here(Arc::new(nats::raw(&server).await?))),
        (OVER_NATS, here(Arc::clone(&over_nats) as Arc<dyn Subject>)),
        (TONIC, here(Arc::new(grpc::start(&model).await?))),
        (DYNAMO, Contender::Apart(dynamo::tcp()?)),
        (DYNAMO_QUIC, Contender::Apart(dynamo::quic()?)),
    ];
    let mut table = Table::default();
    for workload in &WORKLOADS {
        let taking_part = |name: &str| OURS.contains(&name) || workload.takes(name);
        let some: Vec<_> = contenders.iter().filter(|(name, _)| taking_part(name)).collect();
        rows(&mut table, workload, &in_turns(&some, workload.turn).await?)?;
    }

    // What a token costs on the wire at 256 streams, by our own count.
    let turn = ready(256, 256);
    let tokens = f64::from(turn.calls * turn.tokens);
    for (plane, subject, [bytes, calls], targets) in [
        (TCP, &tcp, [BYTES, WRITES], [Some(16.0), Some(0.1)]),
        (OVER_NATS, &over_nats, [BYTES, DATAGRAMS], [None, None]),
    ] {
        let before = subject.sent();
        turn::run(&(Arc::clone(subject) as Arc<dyn Subject>), &model, turn).await?;
        let after = subject.sent();
        let workload = format!("256 streams of 200 tokens, {plane}");
        for (at, metric) in [bytes, calls].into_iter().enumerate() {
            let each = (after[at] - before[at]) as f64 / tokens;
            table.row(&workload, metric, each, None, targets[at]);
        }
    }

    table.print();
    path.map_or(Ok(()), |path| table.write(path))
}

/// Who takes turns, and where.
enum Contender {
    Here(Arc<dyn Subject>, Arc<Model>),
    Apart(Child),
}

/// What everybody is asked to do, what is read off it, and which peers do it.
struct Workload {
    name: &'static str,
    turn: Turn,
    metrics: &'static [(Metric, fn(&Measured) -> f64)],
    peers: &'static [&'static str],
}

impl Workload {
    fn takes(&self, peer: &str) -> bool {
        self.peers.contains(&peer)
    }
}

/// Gives each its turn, several times round, and returns the medians.
async fn in_turns<'a>(
    contenders: &[&'a (&'static str, Contender)],
    turn: Turn,
) -> Result<Vec<(&'a str, Measured)>> {
    let mut rounds = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for ((name, contender), measured) in contenders.iter().zip(&mut rounds) {
            let turn = match contender {
                Contender::Here(subject, model) => turn::run(subject, model, turn).await,
                Contender::Apart(child) => child.run(turn).await,
            };
            measured.push(turn.with_context(|| format!("the turn of {name}"))?);
        }
    }
    let medians = rounds.iter().map(|rounds| Measured::median(rounds));
    Ok(contenders.iter().map(|(name, _)| *name).zip(medians).collect())
}

/// Adds the rows of a workload: each of our planes beside each peer that does the same.
fn rows(table: &mut Table, workload: &Workload, results: &[(&str, Measured)]) -> Result<()> {
    for plane in OURS {
        let of = |name| results.iter().find(|(n, _)| *n == name).map(|(_, measured)| measured);
        let ours = of(plane).with_context(|| format!("no turn of {plane}"))?;
        let name = format!("{}, {plane}", workload.name);
        for (metric, figure) in workload.metrics {
            // A value that is moved is not compared with bytes that travel.
            let peers: Vec<_> = match plane {
                MEMORY => Vec::new(),
                // Who talks over NATS is compared with who does.
                plane => {
                    let alike = |peer: &&&str| {
                        (plane == OVER_NATS) == (**peer == NATS) || workload.turn.tokens > 1
                    };
                    let peers = workload.peers.iter().filter(alike);
                    peers.filter_map(|peer| Some((*peer, of(peer)?))).collect()
                }
            };
            if peers.is_empty() && *metric != PACKETS && *metric != LOOPBACK {
                table.row(&name, *metric, figure(ours), None, None);
            }
            for (peer, theirs) in peers {
                let target = target(*metric, plane, peer);
                table.row(&name, *metric, figure(ours), Some((peer, figure(theirs))), target);
            }
        }
    }
    Ok(())
}

/// The ratio to a peer that is aimed at.
fn target(metric: Metric, plane: &str, peer: &str) -> Option<f64> {
    match (metric, plane, peer) {
        (P50, TCP, SOCKET) => Some(1.5),
        (P50, OVER_NATS, NATS) => Some(1.3),
        (TOKENS, _, TONIC) => Some(3.0),
        (TOKENS, _, DYNAMO | DYNAMO_QUIC) => Some(5.0),
        _ => None,
    }
}

const fn unary(callers: u32, calls: u32) -> Turn {
    Turn { callers, calls, tokens: 1, stepped: false }
}

const fn ready(callers: u32, calls: u32) -> Turn {
    Turn { callers, calls, tokens: 200, stepped: false }
}

const WORKLOADS: [Workload; 6] = [
    Workload {
        name: "unary, one at a time",
        turn: unary(1, 3000),
        metrics: &[(P50, |m| m.p50), (P99, |m| m.p99)],
        peers: UNARY,
    },
    Workload {
        name: "unary, 64 at a time",
        turn: unary(64, 20_000),
        metrics: &[(REQUESTS, |m| m.rate)],
        peers: UNARY,
    },
    Workload {
        name: "unary, 256 at a time",
        turn: unary(256, 20_000),
        metrics: &[(REQUESTS, |m| m.rate)],
        peers: UNARY,
    },
    Workload {
        name: "64 streams of 200 tokens",
        turn: ready(64, 5000),
        metrics: STREAMED,
        peers: STREAMING,
    },
    Workload {
        name: "1024 streams of 200 tokens",
        turn: ready(1024, 5000),
        metrics: STREAMED,
        peers: STREAMING,
    },
    Workload {
        name: "256 streams in 2000 steps",
        turn: Turn { callers: 256, calls: 256, tokens: 2000, stepped: true },
        metrics: STREAMED,
        peers: STREAMING,
    },
];

const UNARY: &[&str] = &[SOCKET, NATS, TONIC, DYNAMO, DYNAMO_QUIC];
const STREAMING: &[&str] = &[TONIC, DYNAMO, DYNAMO_QUIC];
const STREAMED: &[(Metric, fn(&Measured) -> f64)] =
    &[(TOKENS, |m| m.rate), (CPU, |m| m.cpu), (LOOPBACK, |m| m.bytes), (PACKETS, |m| m.packets)];

const P50: Metric = Metric::lower("p50", "us");
const P99: Metric = Metric::lower("p99", "us");
const REQUESTS: Metric = Metric::higher("requests", "1/s");
const TOKENS: Metric = Metric::higher("tokens", "1/s");
const CPU: Metric = Metric::lower("CPU per token", "us");
const LOOPBACK: Metric = Metric::lower("loopback bytes per token", "B");
const PACKETS: Metric = Metric::lower("loopback packets per token", "1");
const BYTES: Metric = Metric::lower("bytes per token", "B");
const WRITES: Metric = Metric::lower("writes per token", "1");
const DATAGRAMS: Metric = Metric::lower("datagrams per token", "1");

const MEMORY: &str = "memory";
const TCP: &str = "tcp";
const OVER_NATS: &str = "nats";
const OURS: [&str; 3] = [MEMORY, TCP, OVER_NATS];
const SOCKET: &str = "raw socket";
const NATS: &str = "async-nats";
const TONIC: &str = "tonic";
const DYNAMO: &str = "dynamo-runtime";
const DYNAMO_QUIC: &str = "dynamo-runtime, quic";

const ROUNDS: usize = 5;
