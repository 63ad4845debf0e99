//! Our side: one process per side, through the public interface as users have it.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dynamo_transfer::UcxConfig;
use dynamo_transfer::{
    Agent, AgentConfig, HostBuffer, MemoryFabric, RegisteredRegion, TransferOptions,
};
use dynamo_transfer::{BlockLayout, LocalDescriptor, RemoteAgent, RemoteDescriptor, RemoteRegion};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use crate::memory::{self, REGION_BYTES};
use crate::protocol::{Answer, Command, Form, Pattern, Request, Right, Side};

/// The backends between agents that can be asked for.
pub const BACKENDS: [&str; 5] = [MEMCPY, SHM, SHARED, TCP, UCX];

pub const MEMCPY: &str = "memcpy";
pub const SHM: &str = "shm";
/// The same with memory that peers can map.
pub const SHARED: &str = "shm-shared";
pub const TCP: &str = "tcp";
pub const UCX: &str = "ucx";

/// Returns how the agents of a backend are set up, owner and initiator.
fn configs(backend: &str) -> Option<[AgentConfig; 2]> {
    let config = |side: Side| AgentConfig::default().with_name(side.name());
    let [owner, initiator] = [config(Side::Owner), config(Side::Initiator)];
    match backend {
        MEMCPY => {
            let fabric = MemoryFabric::new();
            Some([owner.with_fabric(fabric.clone()), initiator.with_fabric(fabric)])
        }
        TCP => Some([owner.with_tcp_listen(([127, 0, 0, 1], 0).into()), initiator]),
        SHM | SHARED => Some([owner.with_shm(true), initiator.with_shm(true)]),
        UCX => {
            let ucx = UcxConfig::default();
            Some([owner.with_ucx(ucx.clone()), initiator.with_ucx(ucx)])
        }
        _ => None,
    }
}

/// Is a side of a backend, or both if the process is to hold both, until the questions end.
pub fn run(backend: &str, sides: &str) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let [owner, initiator] = configs(backend).context("not offered")?;
    let started = Instant::now();
    let mut agents = Vec::new();
    if sides != Side::Initiator.name() {
        agents.push((Side::Owner, runtime.block_on(Agent::start(owner))?));
    }
    if sides != Side::Owner.name() {
        agents.push((Side::Initiator, runtime.block_on(Agent::start(initiator))?));
    }
    let start = started.elapsed().as_secs_f64() / agents.len() as f64;
    let parties = agents.into_iter().map(|(side, agent)| Party::new(side, agent, backend));
    let mut parties = parties.collect::<Result<Vec<_>>>()?;
    let offer = parties[0].offer();
    say(&Answer { start, offer, ..Answer::default() })?;

    for line in std::io::stdin().lock().lines() {
        let Request { side, command } = serde_json::from_str(&line?)?;
        let party = parties.iter_mut().find(|party| party.side == side);
        let answer = party.context("of another process").and_then(|p| p.take(command, &runtime));
        let failed = |error| Answer { error: Some(format!("{error:#}")), ..Answer::default() };
        say(&answer.unwrap_or_else(failed))?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(answer)?)?)
}

/// An agent with its one region.
struct Party {
    side: Side,
    agent: Agent,
    /// Always there, but while its bytes are looked at.
    region: Option<RegisteredRegion<HostBuffer>>,
    /// The owner, to the initiator.
    peer: Option<RemoteAgent>,
}

impl Party {
    fn new(side: Side, agent: Agent, backend: &str) -> Result<Self> {
        // Both are on huge pages, as everybody's.
        let mut memory = match backend {
            SHARED => HostBuffer::shared(REGION_BYTES)?,
            _ => HostBuffer::new(REGION_BYTES),
        };
        memory::fill(&mut memory, if side == Side::Owner { 1 } else { 2 });
        let region = Some(agent.register_peer_writable(vec![memory])?);
        Ok(Self { side, agent, region, peer: None })
    }

    fn take(&mut self, command: Command, runtime: &Runtime) -> Result<Answer> {
        match command {
            Command::Meet { offer } => {
                self.peer = Some(self.agent.load_metadata(&unhex(&offer)?)?);
                Ok(Answer::default())
            }
            Command::Scramble { pattern, seed } => runtime.block_on(self.with_bytes(|bytes| {
                memory::fill(&mut bytes[..pattern.span() as usize], seed);
                Answer::default()
            })),
            Command::Digest { pattern } => {
                let side = self.side;
                runtime.block_on(self.with_bytes(|bytes| Answer {
                    blocks: memory::digest(bytes, pattern.ranges(side)),
                    gaps: memory::digest(bytes, pattern.gaps(side)),
                    ..Answer::default()
                }))
            }
            // Nobody has to poll.
            Command::Serve | Command::Rest => Ok(Answer::default()),
            Command::Bulk { right, pattern, times } => {
                let turn = self.turn(right, pattern, times)?;
                // As a task, as users have it.
                let (totals, posts) = runtime.block_on(runtime.spawn(turn.run()))??;
                Ok(Answer { totals, posts, ..Answer::default() })
            }
            Command::Describe { form, pattern, times } => {
                let posts = runtime.block_on(self.describe(form, pattern, times))?;
                Ok(Answer { posts, ..Answer::default() })
            }
        }
    }

    /// Revokes the region, looks at its bytes, and registers it again.
    async fn with_bytes(&mut self, look: impl FnOnce(&mut [u8]) -> Answer) -> Result<Answer> {
        let region = self.region.take().context("a region that failed to register")?;
        let mut memory = region.close().await.pop().context("a region is one piece")?;
        let answer = look(&mut memory);
        self.region = Some(self.agent.register_peer_writable(vec![memory])?);
        Ok(Answer { offer: self.offer(), ..answer })
    }

    fn offer(&self) -> Option<String> {
        let region = self.region.as_ref().filter(|_| self.side == Side::Owner)?;
        let metadata = self.agent.metadata([region.grant()]).ok()?;
        Some(metadata.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn regions(&self) -> Result<(&RegisteredRegion<HostBuffer>, &RemoteRegion)> {
        let region = self.region.as_ref().context("no region")?;
        let peer = self.peer.as_ref().and_then(|peer| peer.regions().first());
        Ok((region, peer.context("nobody was met")?))
    }

    /// Returns the seconds that describing a pattern on both sides and posting a read of it take.
    async fn describe(&self, form: Form, pattern: Pattern, times: u32) -> Result<Vec<f64>> {
        let (region, peer) = self.regions()?;
        let ranges = |side| pattern.ranges(side).collect::<Vec<_>>();
        let lists = (ranges(Side::Initiator), ranges(Side::Owner));
        let layout = |side| {
            let apart = 2 * pattern.block;
            BlockLayout::contiguous(pattern.block)
                .with_offset(pattern.first(side))
                .with_stride(apart)
        };
        let count = u32::try_from(pattern.count)?;
        let blocks: Vec<u32> = (0..count).collect();
        let mut posts = Vec::new();
        for turn in 0..=times {
            let indices = (blocks.clone(), blocks.clone());
            let options = TransferOptions::default().with_deadline(DEADLINE);
            let started = Instant::now();
            let (local, remote) = match form {
                Form::List => {
                    let [mine, theirs] = [&lists.0, &lists.1].map(|list| list.iter().copied());
                    (region.descriptor(mine)?, peer.descriptor(theirs)?)
                }
                Form::Blocks => (
                    region.blocks(layout(Side::Initiator), indices.0)?,
                    peer.blocks(layout(Side::Owner), indices.1)?,
                ),
                Form::Run => (
                    region.blocks(layout(Side::Initiator), 0..count)?,
                    peer.blocks(layout(Side::Owner), 0..count)?,
                ),
            };
            let transfer = self.agent.read(local, remote, options);
            let post = started.elapsed();
            transfer.await?;
            if turn > 0 {
                posts.push(post.as_secs_f64());
            }
        }
        Ok(posts)
    }

    fn turn(&self, right: Right, pattern: Pattern, times: u32) -> Result<Turn> {
        let (region, peer) = self.regions()?;
        Ok(Turn {
            agent: self.agent.clone(),
            right,
            local: region.descriptor(pattern.ranges(Side::Initiator))?,
            remote: peer.descriptor(pattern.ranges(Side::Owner))?,
            bytes: pattern.bytes(),
            times,
        })
    }
}

/// The same transfer several times, with descriptors that are there already.
struct Turn {
    agent: Agent,
    right: Right,
    local: LocalDescriptor,
    remote: RemoteDescriptor,
    bytes: u64,
    times: u32,
}

impl Turn {
    async fn run(self) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut totals, mut posts) = (Vec::new(), Vec::new());
        for turn in 0..=self.times {
            let (local, remote) = (self.local.clone(), self.remote.clone());
            let options = TransferOptions::default().with_deadline(DEADLINE);
            let started = Instant::now();
            let transfer = match self.right {
                Right::Read => self.agent.read(local, remote, options),
                Right::Write => self.agent.write(local, remote, options),
            };
            let post = started.elapsed();
            let report = transfer.await?;
            let total = started.elapsed();
            ensure!(report.bytes == self.bytes, "{} bytes of {}", report.bytes, self.bytes);
            if turn > 0 {
                totals.push(total.as_secs_f64());
                posts.push(post.as_secs_f64());
            }
        }
        Ok((totals, posts))
    }
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |at| u8::from_str_radix(text.get(at..at + 2).unwrap_or_default(), 16);
    if text.len() % 2 == 1 {
        bail!("half a byte");
    }
    Ok((0..text.len()).step_by(2).map(digit).collect::<Result<_, _>>()?)
}

const DEADLINE: Duration = Duration::from_secs(30);
