//! Who takes part: a process that owns memory, and one that reads and writes it.

use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::child::Child;
use crate::figures::quantile;
use crate::protocol::{Answer, Command, Form, Pattern, Right, Side};

/// How a contender is started.
#[derive(Clone)]
pub enum Kind {
    /// A backend of ours, and the folder of libraries that it is to find UCX in.
    Ours(&'static str, Option<PathBuf>),
    /// A script for an interpreter, and its arguments.
    Python(PathBuf, &'static str, &'static [&'static str]),
}

pub struct Contender {
    pub name: &'static str,
    pub kind: Kind,
    /// None if the initiator's process holds both sides.
    owner: Option<Child>,
    initiator: Child,
    /// Seconds that starting an engine took, the mean of both sides.
    pub start: f64,
    /// Whether its processes spin when they have nothing to do, so that they have to be stopped
    /// while others have their turn.
    spins: bool,
    /// Why it takes part no more.
    pub lost: Option<String>,
}

/// What a turn took.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    pub totals: Vec<f64>,
    pub posts: Vec<f64>,
    /// Processor seconds of each side per byte moved; of both if they are one process.
    pub initiator_cpu: f64,
    pub owner_cpu: Option<f64>,
}

impl Contender {
    /// Starts its processes, and lets them meet.
    pub fn start(name: &'static str, kind: Kind, spins: bool, logs: &Path) -> Result<Self> {
        let log = |side: &str| logs.join(format!("{}-{side}.log", name.replace([' ', ','], "-")));
        let one_process = matches!(kind, Kind::Ours(crate::ours::MEMCPY, _));
        let (owner, initiator) = if one_process {
            (None, Child::start(kind.program("both")?, &log("both"))?)
        } else {
            let start = |side: &str| Child::start(kind.program(side)?, &log(side));
            let owner = start(Side::Owner.name()).context("the owner")?;
            (Some(owner), start(Side::Initiator.name()).context("the initiator")?)
        };
        let (initiator, ready) = initiator;
        let (owner, owner_ready) = owner.unzip();
        let owner_ready: Option<Answer> = owner_ready;
        let starts = [Some(ready.start), owner_ready.as_ref().map(|ready| ready.start)];
        let starts: Vec<f64> = starts.into_iter().flatten().collect();
        let start = starts.iter().sum::<f64>() / starts.len() as f64;
        let mut contender = Self { name, kind, owner, initiator, start, spins, lost: None };
        let offer = owner_ready.unwrap_or(ready).offer.context("the owner offers nothing")?;
        contender.serving(|own| own.meet(offer))?;
        contender.pause()?;
        Ok(contender)
    }

    /// Moves random bytes, and looks at them: every block is there, and no gap is touched.
    pub fn verify(&mut self, right: Right, pattern: Pattern, seed: u64) -> Result<()> {
        self.resume()?;
        let (from, to) = match right {
            Right::Read => (Side::Owner, Side::Initiator),
            Right::Write => (Side::Initiator, Side::Owner),
        };
        self.ask(to, Command::Scramble { pattern, seed })?;
        let source = self.ask(from, Command::Digest { pattern })?;
        let before = self.ask(to, Command::Digest { pattern })?;
        ensure!(source.blocks != before.blocks, "the bytes are there before they are moved");
        self.serving(|own| {
            own.ask(Side::Initiator, Command::Bulk { right, pattern, times: 0 }).map(drop)
        })?;
        let after = self.ask(to, Command::Digest { pattern })?;
        ensure!(after.blocks == source.blocks, "the bytes are not those of the other side");
        ensure!(after.gaps == before.gaps, "bytes between the blocks have changed");
        self.pause()
    }

    /// Makes the same transfer `times` times, and once more before that is timed.
    pub fn turn(&mut self, right: Right, pattern: Pattern, times: u32) -> Result<Turn> {
        self.resume()?;
        let mut turn = Turn::default();
        self.serving(|own| {
            let before = own.cpu()?;
            let command = Command::Bulk { right, pattern, times };
            let answer = own.ask(Side::Initiator, command)?;
            let after = own.cpu()?;
            ensure!(answer.totals.len() == times as usize, "{} turns", answer.totals.len());
            let bytes = pattern.bytes() as f64 * f64::from(times + 1);
            turn = Turn {
                totals: answer.totals,
                posts: answer.posts,
                initiator_cpu: (after.0 - before.0) / bytes,
                owner_cpu: after.1.zip(before.1).map(|(after, before)| (after - before) / bytes),
            };
            Ok(())
        })?;
        self.pause()?;
        Ok(turn)
    }

    /// Returns the median of the seconds that describing a pattern and posting a read of it take.
    pub fn describe(&mut self, form: Form, pattern: Pattern) -> Result<f64> {
        let command = Command::Describe { form, pattern, times: DESCRIBED_TIMES };
        let mut posts = self.ask(Side::Initiator, command)?.posts;
        quantile(&mut posts, 50).context("nothing was posted")
    }

    /// Returns the processor seconds per second of a process that may be asked and is not, of the
    /// side that takes more.
    pub fn idle(&mut self, time: Duration) -> Result<f64> {
        self.resume()?;
        let mut used = 0.0;
        self.serving(|own| {
            let before = own.cpu()?;
            std::thread::sleep(time);
            let after = own.cpu()?;
            let owner = after.1.zip(before.1).map(|(after, before)| after - before);
            used = owner.unwrap_or_default().max(after.0 - before.0);
            Ok(())
        })?;
        self.pause()?;
        Ok(used / time.as_secs_f64())
    }

    fn meet(&mut self, offer: String) -> Result<()> {
        self.ask(Side::Initiator, Command::Meet { offer }).map(drop)
    }

    fn serving(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.ask(Side::Owner, Command::Serve)?;
        act(self)?;
        self.ask(Side::Owner, Command::Rest).map(drop)
    }

    /// Asks a side, and tells the initiator if the owner's memory is another since.
    fn ask(&mut self, side: Side, command: Command) -> Result<Answer> {
        let child = match (side, &mut self.owner) {
            (Side::Owner, Some(owner)) => owner,
            _ => &mut self.initiator,
        };
        let mut answer = child.ask(side, command).with_context(|| side.name())?;
        if let Some(offer) = answer.offer.take() {
            self.meet(offer)?;
        }
        Ok(answer)
    }

    fn cpu(&self) -> Result<(f64, Option<f64>)> {
        Ok((self.initiator.cpu()?, self.owner.as_ref().map(Child::cpu).transpose()?))
    }

    /// Takes its processors away for good; what it says is not heard any more.
    pub fn stop(&self) {
        // It may have ended by itself.
        let _ = self.owner.as_ref().map(Child::pause);
        let _ = self.initiator.pause();
    }

    fn resume(&self) -> Result<()> {
        if !self.spins {
            return Ok(());
        }
        self.owner.as_ref().map_or(Ok(()), Child::resume)?;
        self.initiator.resume()
    }

    fn pause(&self) -> Result<()> {
        if !self.spins {
            return Ok(());
        }
        self.owner.as_ref().map_or(Ok(()), Child::pause)?;
        self.initiator.pause()
    }
}

impl Kind {
    /// Returns the program that is `side`.
    fn program(&self, side: &str) -> Result<Program> {
        let mut program = match self {
            Self::Ours(backend, libraries) => {
                let mut program = Program::new(std::env::current_exe()?);
                program.args([crate::AS, backend]);
                if let Some(libraries) = libraries {
                    program.env("LD_LIBRARY_PATH", libraries);
                    program.env("UCX_MODULE_DIR", libraries.join("ucx"));
                }
                program
            }
            Self::Python(interpreter, script, args) => {
                let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
                let mut program = Program::new(interpreter);
                program.arg(scripts.join(script)).args(*args);
                program
            }
        };
        program.arg(side);
        Ok(program)
    }
}

const DESCRIBED_TIMES: u32 = 20;
