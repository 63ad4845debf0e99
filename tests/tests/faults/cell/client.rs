//! Cells in which the caller is a process of its own, and is killed.

use std::path::Path;

use anyhow::{Context as _, Result};
use dynamo_tests::phases::Caller;
use dynamo_tests::process::Process;

use super::{Cell, Left, Phase, word};

impl Cell<'_> {
    /// Has a process make the request, and kills it once it is in the phase.
    pub(super) async fn client_process(&mut self, before: Left) -> Result<()> {
        let mut occupant = None;
        match self.phase {
            // A server that is frozen does not greet: the connection stays being made.
            Phase::Connect => self.server.signal("STOP").await?,
            Phase::Queued => {
                let mut first = self.client(Phase::BeforeFirstItem)?;
                says(&mut first, "begun").await?;
                occupant = Some(first);
            }
            _ => {}
        }
        let mut client = self.client(self.phase)?;
        self.reaches_its_phase(&mut client).await?;
        client.kill()?;
        client.ended().await?;
        if let Some(mut occupant) = occupant {
            self.until(|left| left.waiting == 0).await?;
            occupant.kill()?;
            occupant.ended().await?;
        }
        if self.phase == Phase::Connect {
            self.server.signal("CONT").await?;
            let caller = Caller::start(&self.address, self.id).await?;
            self.dropped_while_connecting(&caller, before).await?;
            caller.end().await.context("the caller's end")?;
        }
        Ok(())
    }

    fn client(&self, phase: Phase) -> Result<Process> {
        let (program, id) = (Path::new(env!("CARGO_BIN_EXE_peer")), self.id.to_string());
        Process::start(program, ["call", &self.address, &id, word(phase)])
    }

    async fn reaches_its_phase(&mut self, client: &mut Process) -> Result<()> {
        match self.phase {
            // As far as it gets: the kernel has answered for the server.
            Phase::Connect => says(client, "connected").await,
            Phase::BeforeAccept => self.until_started(1).await,
            Phase::Queued => self.until(|left| left.waiting == 1).await,
            Phase::BeforeFirstItem => says(client, "begun").await,
            Phase::MidStream => says(client, "item").await,
            Phase::Draining => {
                says(client, "item").await?;
                self.server.ask("drain").await.map(drop)
            }
        }
    }
}

/// Waits until a client says so, past what it says before.
async fn says(client: &mut Process, word: &str) -> Result<()> {
    while client.line().await.with_context(|| format!("waiting for {word:?}"))? != word {}
    Ok(())
}
