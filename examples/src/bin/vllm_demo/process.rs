//! A process that the demo has started: its output in files, its end certain.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// A process in a group of its own, with those that it starts; dropping it kills all of them.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    /// The group's number, which is that of the process.
    group: u32,
    output: PathBuf,
    log: PathBuf,
    has_ended: bool,
}

impl Process {
    /// Starts `command`, whose output goes to `NAME.out` and `NAME.log` in `folder`.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let file = |kind| folder.join(format!("{name}.{kind}"));
        let (output, log) = (file("out"), file("log"));
        let create = |path| File::create(path).with_context(|| format!("the output of {name}"));
        command.stdin(Stdio::null()).stdout(create(&output)?).stderr(create(&log)?);
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let child = child.with_context(|| {
            format!("cannot start {name}: {}", command.as_std().get_program().display())
        })?;
        let group = child.id().context("a process has a number")?;
        Ok(Self { name: name.to_owned(), child, group, output, log, has_ended: false })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until `is_ready` says so; fails if the process ends before, or soon after `max`.
    ///
    /// Who asks a process that does not answer asks again after [`LOOK_MAX`].
    pub(crate) async fn ready(
        &mut self,
        max: Duration,
        is_ready: impl AsyncFn() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + max;
        while !timeout(LOOK_MAX, is_ready()).await.unwrap_or(false) {
            if let Some(status) = self.child.try_wait()? {
                self.kill_what_is_left();
                bail!("{} ended with {status}; its last lines:\n{}", self.name, self.tail());
            }
            if Instant::now() > end {
                let (name, tail) = (&self.name, self.tail());
                bail!("{name} is not ready after {} s; its last lines:\n{tail}", max.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until it has printed a line that begins with `ready`.
    pub(crate) async fn says_ready(&mut self, max: Duration) -> Result<()> {
        let output = self.output.clone();
        let is_ready = async || {
            let text = tokio::fs::read_to_string(&output).await.unwrap_or_default();
            text.lines().any(|line| line.starts_with("ready"))
        };
        self.ready(max, is_ready).await
    }

    /// Returns what it has printed so far.
    pub(crate) fn printed(&self) -> Result<String> {
        std::fs::read_to_string(&self.output).with_context(|| format!("what {} said", self.name))
    }

    /// Kills it and all that it has started, as a crash would.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        let status = Command::from(self.signal("KILL")).status().await?;
        ensure!(status.success(), "killing {}: {status}", self.name);
        self.child.wait().await?;
        self.has_ended = true;
        Ok(())
    }

    /// Asks it to end; fails if it does not, or not with success.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let id = self.group.to_string();
        let status = Command::new("kill").args(["-s", "TERM", &id]).status().await?;
        ensure!(status.success(), "ending {}: {status}", self.name);
        let ended = timeout(ENDING_MAX, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} does not end", self.name))??;
        self.kill_what_is_left();
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.tail());
        Ok(())
    }

    /// Kills what runs of the group; once, since a number that is free may be another's later.
    fn kill_what_is_left(&mut self) {
        // A group of which nothing is left cannot be killed, which is as well.
        let _ = self.signal("KILL").status();
        self.has_ended = true;
    }

    /// Returns the last lines of what it has written.
    fn tail(&self) -> String {
        let read = |path| std::fs::read(path).unwrap_or_default();
        let bytes = [read(&self.output), read(&self.log)].concat();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Returns the command that sends a signal to the group.
    fn signal(&self, signal: &str) -> std::process::Command {
        let mut command = std::process::Command::new("kill");
        command.args(["-s", signal, "--", &format!("-{}", self.group)]);
        command.stderr(Stdio::null());
        command
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended {
            self.kill_what_is_left();
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(200);

const LOOK_MAX: Duration = Duration::from_secs(5);

/// Longer than a sidecar's drain.
const ENDING_MAX: Duration = Duration::from_secs(45);

const TAIL_LINES: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    /// Waits until a process is gone, or is only to be reaped by whoever adopted it.
    async fn is_gone(id: &str) {
        let runs = || match std::fs::read_to_string(format!("/proc/{id}/stat")) {
            Ok(stat) => !stat.contains(") Z "),
            Err(_) => false,
        };
        while runs() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_that_of_what_it_has_started() {
        for way in ["kill", "end", "drop"] {
            let folder = folder(way);
            let command = script("trap 'exit 0' TERM; sleep 600 & echo ready $!; wait");
            let mut process = Process::start("parent", command, &folder).unwrap();
            process.says_ready(Duration::from_secs(10)).await.unwrap();
            let child = process.printed().unwrap();
            let child = child.split_whitespace().nth(1).unwrap().to_owned();
            match way {
                "kill" => process.kill().await.unwrap(),
                "end" => process.end().await.unwrap(),
                _ => drop(process),
            }
            timeout(Duration::from_secs(10), is_gone(&child)).await.unwrap();
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_no_longer_than_was_said() {
        let folder = folder("mute");
        let mut process = Process::start("engine", script("sleep 600"), &folder).unwrap();
        let error = process.ready(Duration::from_secs(30), std::future::pending::<bool>).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("engine is not ready after 30 s"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn who_ends_before_it_is_ready_is_an_error_with_its_last_lines() {
        let folder = folder("ending");
        let command = script("echo no room left >&2; exit 3");
        let mut process = Process::start("engine", command, &folder).unwrap();
        let error = process.says_ready(Duration::from_secs(10)).await.unwrap_err().to_string();
        assert!(error.contains("engine") && error.contains("no room left"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
