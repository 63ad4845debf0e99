//! A contender that reads its settings from the environment, in a process of its own: this
//! program, started once more with an argument. Turns go in as lines, what they took comes back.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::model::Model;
use crate::turn::{self, Measured, Subject, TURN_MAX, Turn};

pub struct Child {
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    /// Killed when it is dropped.
    _process: tokio::process::Child,
}

impl Child {
    /// Starts this program as `name`, with no other environment than `settings`.
    pub fn start(name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(AS).arg(name).env_clear().envs(settings.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pipes = process.stdin.take().zip(process.stdout.take()).context("no pipes")?;
        let pipes = Mutex::new((pipes.0, BufReader::new(pipes.1).lines()));
        Ok(Self { pipes, _process: process })
    }

    pub async fn run(&self, turn: Turn) -> Result<Measured> {
        let (turns, answers) = &mut *self.pipes.lock().await;
        turns.write_all(format!("{}\n", serde_json::to_string(&turn)?).as_bytes()).await?;
        let answer = tokio::time::timeout(TURN_MAX * 2, answers.next_line()).await;
        let answer = answer.context("a contender hangs")??.context("a contender has ended")?;
        let answer: Result<Measured, String> = serde_json::from_str(&answer)?;
        answer.map_err(|error| anyhow!(error))
    }
}

/// Takes turns from the other end of the pipe, until it closes.
pub async fn take_turns(subject: Arc<dyn Subject>, model: &Model) -> Result<()> {
    let mut turns = BufReader::new(tokio::io::stdin()).lines();
    while let Some(turn) = turns.next_line().await? {
        let measured = turn::run(&subject, model, serde_json::from_str(&turn)?).await;
        let answer = measured.map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// The argument before the name of a contender that this process is to be.
pub const AS: &str = "--as";
