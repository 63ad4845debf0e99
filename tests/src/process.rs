//! Processes of a test: started, asked, frozen, killed; and what a process has open.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A process that answers each line with a line, and ends when its input does; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `program`; its first line is for [`line`](Self::line).
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let input = child.stdin.take();
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    /// Returns the next line that it says, within twenty seconds.
    pub async fn line(&mut self) -> Result<String> {
        let line = tokio::time::timeout(ANSWER_MAX, self.output.next_line()).await;
        line.context("a process does not answer")??.context("a process has ended")
    }

    /// Says a line and returns the answer.
    pub async fn ask(&mut self, line: &str) -> Result<String> {
        let input = self.input.as_mut().context("its input is open")?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        self.line().await
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.start_kill().context("killing")
    }

    /// Sends a signal by its name, such as `STOP`; that one has come into effect on return.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let id = self.child.id().context("the process has ended")?.to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().await?;
        ensure!(status.success(), "kill -s {name} {id}: {status}");
        let stops = async {
            while name == "STOP" && !is_stopped(&id)? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        };
        tokio::time::timeout(ANSWER_MAX, stops).await.context("does not stop")?
    }

    /// Waits until it has ended after a [`kill`](Self::kill).
    pub async fn ended(&mut self) -> Result<()> {
        self.input = None;
        tokio::time::timeout(ANSWER_MAX, self.child.wait()).await.context("does not end")??;
        Ok(())
    }
}

/// Tells whether all threads of a process have stopped: a busy one may run on for a moment.
fn is_stopped(id: &str) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        if !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says a line on the output of this process.
pub async fn say(line: &str) -> Result<()> {
    let mut output = tokio::io::stdout();
    output.write_all(format!("{line}\n").as_bytes()).await?;
    Ok(output.flush().await?)
}

/// Returns how many files and sockets this process has open.
pub fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Returns the resident size of this process in KiB.
pub fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().context("VmRSS")
}

const ANSWER_MAX: Duration = Duration::from_secs(20);
