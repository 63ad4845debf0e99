//! A process of a contender: asked by lines on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use crate::protocol::{Answer, Command, Request, Side};

pub struct Child {
    process: std::process::Child,
    questions: std::process::ChildStdin,
    answers: Receiver<std::io::Result<String>>,
    pid: Pid,
    /// Processor time of all its threads, those that have ended included.
    clock: ClockId,
}

impl Child {
    /// Starts a program whose words, other than answers, go to `log`; it answers when it is ready.
    pub fn start(mut program: Program, log: &Path) -> Result<(Self, Answer)> {
        let log = std::fs::File::create(log).with_context(|| format!("{}", log.display()))?;
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = program.spawn().with_context(|| format!("cannot start {program:?}"))?;
        let pid = Pid::from_raw(i32::try_from(process.id())?);
        let (questions, output) =
            process.stdin.take().zip(process.stdout.take()).context("no pipes")?;
        let (sender, answers) = sync_channel(1);
        // Ends when the process does, which is killed when this is dropped.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let clock = clock_getcpuclockid(pid)?;
        let child = Self { process, questions, answers, pid, clock };
        let ready = child.answer()?;
        Ok((child, ready))
    }

    pub fn ask(&mut self, side: Side, command: Command) -> Result<Answer> {
        let line = serde_json::to_string(&Request { side, command })?;
        self.questions.write_all(format!("{line}\n").as_bytes()).context("it has ended")?;
        self.answer()
    }

    fn answer(&self) -> Result<Answer> {
        let line = self.answers.recv_timeout(ANSWER_MAX).context("it has ended or hangs")??;
        let answer: Answer = serde_json::from_str(&line).with_context(|| line.clone())?;
        match answer.error {
            Some(error) => bail!(error),
            None => Ok(answer),
        }
    }

    /// Returns the processor seconds it has used so far.
    pub fn cpu(&self) -> Result<f64> {
        Ok(Duration::from(self.clock.now()?).as_secs_f64())
    }

    /// Takes its processors away, until it is resumed.
    pub fn pause(&self) -> Result<()> {
        Ok(kill(self.pid, Signal::SIGSTOP)?)
    }

    pub fn resume(&self) -> Result<()> {
        Ok(kill(self.pid, Signal::SIGCONT)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ANSWER_MAX: Duration = Duration::from_secs(60);
