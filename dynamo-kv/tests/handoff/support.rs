use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, HandoffTicket, InstanceId, WorkerId};
use dynamo_kv::{
    AllocateError, BlockLayout, BlockManager, DType, Handoff, HandoffConfig, ManagerConfig, Pulled,
    Staged, TokenSequence,
};
use dynamo_transfer::{Agent, AgentConfig, BackendKind};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Kills processes so many times over each backend that joins processes of one host.
pub(crate) async fn kill_on_each_backend(times: u32, kill: impl AsyncFn(BackendKind, u32)) {
    let backends: &[_] = if cfg!(target_os = "linux") {
        &[BackendKind::Tcp, BackendKind::Shm]
    } else {
        &[BackendKind::Tcp]
    };
    for backend in backends {
        kill(*backend, times).await;
    }
}

/// One side of hand-offs: its memory holds three sequences, and a little.
pub(crate) struct Worker {
    pub(crate) manager: BlockManager,
    pub(crate) handoff: Handoff,
}

const FULL: usize = 16;
const TAIL_TOKENS: usize = 8;
const CAPACITY: usize = 3 * (FULL + 1) + 5;

/// A sequence of its own for each number.
fn sequence(number: u32) -> TokenSequence {
    let tokens = FULL * BlockSize::DEFAULT.tokens() + TAIL_TOKENS;
    let tokens: Vec<u32> = (number * 1000..).take(tokens).collect();
    TokenSequence::new(&CacheNamespace::default(), BlockSize::DEFAULT, &tokens)
}

/// What is in block `index` of a sequence.
fn truth(number: u32, index: usize, bytes: usize) -> Vec<u8> {
    let fill = (number as usize * 37 + index) % 251;
    let mut truth = vec![u8::try_from(fill).unwrap(); bytes];
    truth[..4].copy_from_slice(&number.to_le_bytes());
    truth
}

impl Worker {
    pub(crate) async fn start(backend: BackendKind) -> Self {
        let config = AgentConfig::default();
        let config = match backend {
            BackendKind::Shm => config.with_shm(true),
            _ => config.with_tcp_listen(([127, 0, 0, 1], 0).into()),
        };
        let agent = Agent::start(config).await.unwrap();
        let layout = BlockLayout::new(4, 8, 128, BlockSize::DEFAULT, DType::F32).unwrap();
        let id = WorkerId::new(InstanceId::random());
        let manager = ManagerConfig::new(layout, CAPACITY);
        let manager = BlockManager::new(manager, id, Box::new(|_| {})).unwrap();
        let config = HandoffConfig::default().with_ttl(TTL).with_ttl_max(TTL_MAX);
        let config = config.with_claim_ttl(CLAIM_TTL).with_pull_timeout(PULL_TIMEOUT);
        let handoff = Handoff::new(agent, manager.clone(), config).unwrap();
        Self { manager, handoff }
    }

    /// Computes a sequence and stages it.
    pub(crate) fn stage(&self, number: u32) -> Result<Staged, AllocateError> {
        let sequence = sequence(number);
        let mut blocks = self.manager.allocate(FULL + 1)?;
        for (index, block) in blocks.iter_mut().enumerate() {
            let truth = truth(number, index, block.len());
            block.copy_from_slice(&truth);
        }
        let tail = blocks.pop().unwrap().into_partial(TAIL_TOKENS);
        let complete = blocks.into_iter().zip(sequence.keys());
        let complete = complete.map(|(block, key)| block.complete(*key)).collect();
        let blocks = self.manager.register_all(complete).into();
        Ok(self.handoff.stage(blocks, Some(tail)).unwrap())
    }

    /// Pulls a sequence: its bytes are right, or nothing of it is shared.
    pub(crate) async fn pull(&self, ticket: &str, number: u32) -> dynamo_core::Result<()> {
        let (sequence, ticket) = (sequence(number), HandoffTicket::new(from_hex(ticket)));
        let pulled = self.handoff.pull([&ticket], &sequence, None).await;
        let shared = self.manager.match_prefix(sequence.keys()).len();
        assert_eq!(shared, if pulled.is_ok() { FULL } else { 0 }, "no commit, no block");
        let Pulled { blocks, tail, .. } = pulled?;
        for (index, block) in blocks.iter().enumerate() {
            assert!(block[..] == truth(number, index, block.len()), "wrong bytes");
        }
        let tail = tail.unwrap();
        assert!(tail[..] == truth(number, FULL, tail.len()), "wrong bytes");
        Ok(())
    }

    /// Waits until nothing is staged, held or written, and forgets what is cached.
    pub(crate) async fn at_rest(&self) {
        let rests = async {
            loop {
                let stats = self.manager.stats();
                let sum = stats.free + stats.mutable + stats.complete + stats.active + stats.cached;
                assert_eq!(sum, stats.capacity, "{stats:?}");
                if stats.free + stats.cached == stats.capacity && self.handoff.staged_blocks() == 0
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, rests).await.unwrap();
        self.manager.clear();
        assert_eq!(self.manager.stats().free, CAPACITY);
    }
}

pub(crate) fn ticket(staged: &Staged) -> String {
    staged.ticket().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    (0..hex.len() / 2).map(byte).collect()
}

/// This very program in another process; killed on drop.
pub(crate) struct Other {
    child: Child,
    input: ChildStdin,
}

/// What the other process says.
pub(crate) struct Heard(Lines<BufReader<ChildStdout>>);

impl Other {
    /// Starts the test of that name there, and waits until it has begun.
    pub(crate) fn start(role: &str, backend: BackendKind) -> (Self, Heard) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([role, "--exact", "--ignored", "--nocapture"])
            .env(BACKEND, backend.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut heard = Heard(BufReader::new(child.stdout.take().unwrap()).lines());
        heard.next().unwrap();
        (Self { child, input }, heard)
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Heard {
    /// Returns what it says next; `None` if it has ended.
    pub(crate) fn next(&mut self) -> Option<String> {
        let mut lines = self.0.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix(SAID).map(str::to_owned))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says a line, in the other process.
#[expect(clippy::print_stdout, reason = "processes of a test talk so")]
pub(crate) fn say(line: &str) {
    // The harness may have begun a line.
    println!("\n{SAID}{line}");
}

/// Returns what the other process is told to move blocks by; `None` if this is no other process.
#[expect(clippy::disallowed_methods, reason = "only the test that starts it tells it")]
pub(crate) fn backend() -> Option<BackendKind> {
    std::env::var(BACKEND).ok().map(|name| name.parse().unwrap())
}

/// Writes a line past the capture of passing tests' output.
pub(crate) fn report(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

const BACKEND: &str = "DYNAMO_KV_HANDOFF_TEST";
const SAID: &str = "SAID ";

/// Shorter than what a pull takes on a busy machine, so that renewals count.
const CLAIM_TTL: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_millis(200);
const TTL_MAX: Duration = Duration::from_secs(10);
const PULL_TIMEOUT: Duration = Duration::from_secs(5);
