//! One cell of the table: a server process, a request that gets into a phase, a fault, the end.

mod client;
mod server;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dynamo_core::{Context, Engine, Error, ResponseStream};
use dynamo_tests::phases::Caller;
use dynamo_tests::process::Process;
use tokio::task::JoinSet;

use super::expected::{Again, Expected, NOT_STARTED, SLOW_DEADLINE};
use super::network::Network;
use super::proxy::Proxy;
use super::{Fault, Phase};
use server::Left;

/// One server, and the way to it.
struct Cell<'a> {
    phase: Phase,
    fault: Fault,
    within: Duration,
    network: Option<&'a Network>,
    server: Process,
    proxy: Option<Proxy>,
    address: String,
    id: u64,
}

type Stream = ResponseStream<u32>;

pub(crate) async fn run(
    (phase, fault): (Phase, Fault),
    expected: Expected,
    within: Duration,
    network: Option<&Network>,
) -> Result<()> {
    let mut cell = Cell::start((phase, fault), within, network).await?;
    let before = cell.left().await?;
    if fault == Fault::ClientKilled {
        cell.client_process(before).await.context("client process")?;
    } else {
        let mut caller = Caller::start(&cell.address, cell.id).await?;
        cell.request(&mut caller, expected).await?;
        if (phase, fault) == (Phase::Connect, Fault::ClientDrops) {
            cell.dropped_while_connecting(&caller, before).await?;
        }
        caller.end().await.context("the caller's end")?;
    }
    if fault != Fault::ServerKilled {
        cell.settles(before).await?;
        cell.server.kill()?;
    }
    cell.server.ended().await
}

impl<'a> Cell<'a> {
    async fn start(
        (phase, fault): (Phase, Fault),
        within: Duration,
        network: Option<&'a Network>,
    ) -> Result<Self> {
        let program = env!("CARGO_BIN_EXE_peer");
        let at_once = if phase == Phase::Queued { "1" } else { "8" };
        let mut server = match network.filter(|_| fault == Fault::Blackhole) {
            None => Process::start(Path::new(program), ["serve", "127.0.0.1:0", at_once])?,
            Some(network) => {
                let listen = format!("{}:0", network.address(phase as usize));
                let args = [&network.inside()[..], &[program, "serve", &listen, at_once]].concat();
                Process::start(Path::new("ip"), args)?
            }
        };
        let line = server.line().await?;
        let (address, id) = line.split_once(' ').context("an address and an id")?;
        let (mut address, id) = (address.to_owned(), id.parse()?);
        let mut proxy = None;
        if fault == Fault::Reset {
            let started = Proxy::start(&address).await?;
            address.clone_from(&started.address);
            proxy = Some(started);
        }
        Ok(Self { phase, fault, within, network, server, proxy, address, id })
    }

    /// Makes the request, lets the fault happen, and sees how it ends.
    async fn request(&mut self, caller: &mut Caller, expected: Expected) -> Result<()> {
        // The place that a queued request waits for.
        let mut occupant = None;
        if self.phase == Phase::Queued {
            let request = "before first item".to_owned();
            occupant = Some(caller.client.generate(Context::new(), request).await?);
        }
        if self.phase == Phase::Connect && self.fault != Fault::ClientDrops {
            self.strike(caller).await?;
        }
        if self.phase == Phase::Connect && self.fault == Fault::ClientDrops {
            // A server that is frozen does not greet: the connection stays being made.
            self.server.signal("STOP").await?;
        }
        let is_flood = self.fault == Fault::SlowReader;
        let ctx = Context::new();
        let ctx = if is_flood { ctx.with_timeout(SLOW_DEADLINE) } else { ctx };
        let words = if is_flood { "flood" } else { word(self.phase) };
        let (client, words) = (caller.client.clone(), words.to_owned());
        let mut call = JoinSet::new();
        call.spawn(async move { client.generate(ctx, words).await });

        let mut begun = None;
        match self.phase {
            Phase::Connect if self.fault == Fault::ClientDrops => {
                // As far as it gets: the kernel has answered for the server.
                let connects = async {
                    while caller.connections() == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(PHASE_MAX, connects).await.context("does not connect")?;
                ensure!(call.try_join_next().is_none(), "nobody greets");
            }
            Phase::Connect => {}
            Phase::BeforeAccept => self.until_started(1).await?,
            Phase::Queued => self.until(|left| left.waiting == 1).await?,
            Phase::BeforeFirstItem | Phase::MidStream | Phase::Draining => {
                let mut stream = call.join_next().await.context("the call")???;
                if self.phase != Phase::BeforeFirstItem {
                    let item = stream.next().await;
                    ensure!(matches!(item, Some(Ok(0))), "first item {item:?}");
                }
                if self.phase == Phase::Draining {
                    self.server.ask("drain").await?;
                }
                begun = Some(stream);
            }
        }
        if self.fault == Fault::ClientDrops {
            drop((begun, occupant));
            call.shutdown().await;
            if self.phase == Phase::Connect {
                self.server.signal("CONT").await?;
            }
            return Ok(());
        }
        if self.phase != Phase::Connect {
            self.strike(caller).await?;
        }
        let (items_read, within) = (self.items_read(), self.within);
        let ends = tokio::time::timeout(within, self.end(call, begun)).await;
        let outcome = ends.with_context(|| format!("no end within {within:?}"))??;
        drop(occupant);
        self.revive().await?;
        judge(outcome, items_read, expected)
    }

    /// How many items have been read when the fault happens.
    fn items_read(&self) -> usize {
        usize::from(matches!(self.phase, Phase::MidStream | Phase::Draining))
    }

    /// Sees that a request that was dropped before it had a connection never ran, left none behind,
    /// and that the plane makes one for the next.
    async fn dropped_while_connecting(&mut self, caller: &Caller, before: Left) -> Result<()> {
        let next = async {
            let stream = caller.client.generate(Context::new(), word(self.phase).to_owned());
            stream.await?.collect().await
        };
        let items =
            tokio::time::timeout(self.within, next).await.context("no answer in time")??;
        ensure!(items == [0, 1, 2], "the next request is answered with {items:?}");
        // Of two connections, the one that was given up has ended.
        let connected = Left { tasks: before.tasks + 1, files: before.files + 1, ..before };
        self.until(|left| *left == connected).await.context("more than one connection is left")?;
        let starts = self.server.ask("started").await?;
        ensure!(starts == "1", "{starts} requests were started, not the next alone");
        Ok(())
    }

    /// Reads to the end, of which there is one.
    async fn end(
        &mut self,
        mut call: JoinSet<dynamo_core::Result<Stream>>,
        begun: Option<Stream>,
    ) -> Result<dynamo_core::Result<Vec<u32>>> {
        let stream = match begun {
            Some(stream) => Ok(stream),
            None => call.join_next().await.context("the call")??,
        };
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        if self.fault == Fault::SlowReader {
            self.is_held(&stream).await?;
        }
        let mut items = Vec::new();
        let outcome = loop {
            match stream.next().await {
                Some(Ok(item)) => items.push(item),
                Some(Err(error)) => break Err(error),
                None => break Ok(items),
            }
        };
        ensure!(stream.next().await.is_none(), "something follows {outcome:?}");
        Ok(outcome)
    }

    /// Lets the fault happen.
    async fn strike(&mut self, caller: &mut Caller) -> Result<()> {
        match self.fault {
            Fault::ServerKilled => self.server.kill(),
            Fault::ServerStopped => self.server.signal("STOP").await,
            Fault::Reset => {
                self.proxy.as_ref().context("a proxy")?.reset();
                Ok(())
            }
            Fault::Blackhole => self.network.context("a network")?.swallow(self.phase as usize),
            Fault::DiscoveryLoss => {
                caller.lose().await?;
                if self.phase != Phase::Connect {
                    // Who comes now finds nobody; what runs goes on.
                    let next = caller.client.generate(Context::new(), "nowhere".to_owned()).await;
                    judge(next.map(|_| Vec::new()), 0, NOT_STARTED).context("the next request")?;
                }
                self.server.ask("release").await.map(drop)
            }
            Fault::ClientDrops | Fault::ClientKilled | Fault::SlowReader => Ok(()),
        }
    }

    async fn revive(&self) -> Result<()> {
        match self.fault {
            Fault::ServerStopped => self.server.signal("CONT").await,
            _ => Ok(()),
        }
    }
}

/// Compares how a request ended of whose answer so many items were read before the fault.
fn judge(
    outcome: dynamo_core::Result<Vec<u32>>,
    items_read: usize,
    expected: Expected,
) -> Result<()> {
    let is_as_expected = match (&outcome, expected) {
        (Ok(items), Expected::Complete) => *items == [0, 1, 2][items_read..],
        (Err(error), Expected::Fails(kind, again)) => {
            (error.kind(), error.is_retryable()) == (kind, again == Again::Safe)
        }
        _ => false,
    };
    let safe = outcome.as_ref().err().map(Error::is_retryable);
    ensure!(is_as_expected, "{outcome:?} (may be asked again: {safe:?}), not {expected:?}");
    Ok(())
}

/// Where the engine waits for its release.
fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::BeforeAccept => "before accept",
        Phase::BeforeFirstItem => "before first item",
        Phase::MidStream | Phase::Draining => "mid-stream",
        Phase::Connect | Phase::Queued => "nowhere",
    }
}

/// No promise: how long a busy machine may take to bring a request into its phase.
const PHASE_MAX: Duration = Duration::from_secs(20);
