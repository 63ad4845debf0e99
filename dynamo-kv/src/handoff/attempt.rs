use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{RemoteAgent, RemoteRegion};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inner;
use super::answers;
use super::claim::{Claims, Refusal, Say};
use super::message::{Attempt, Message};
use super::pull::transfer_error;
use super::reads::Reads;
use super::ticket::Ticket;

/// One pull under way: [`Claims`], with what says and hears them. Dropping it before it has settled gives
/// up what it has reserved.
pub(super) struct Pulling {
    inner: Arc<Inner>,
    shares: Vec<Share>,
    claims: Claims,
    answers: mpsc::Receiver<(usize, dynamo_transfer::Result<Message>)>,
    sayer: answers::Sender,
    /// Where owners answer.
    from: Bytes,
    began: Instant,
    deadline: Instant,
    is_settled: bool,
}

/// What one owner has of the pull.
struct Share {
    ticket: Ticket,
    owner: RemoteAgent,
    attempt: Attempt,
    granted: Option<RemoteAgent>,
}

impl Pulling {
    pub(super) fn new(inner: &Arc<Inner>, tickets: Vec<Ticket>, deadline: Instant) -> Result<Self> {
        let claims =
            Claims::new(tickets.iter().map(|ticket| ticket.claim_ttl), std::time::Duration::ZERO);
        let share = |ticket: Ticket| {
            let owner = inner.agent.load_metadata(&ticket.owner).map_err(transfer_error)?;
            Ok(Share { ticket, owner, attempt: Attempt::random()?, granted: None })
        };
        let shares = tickets.into_iter().map(share).collect::<Result<Vec<_>>>()?;
        let from = inner.agent.metadata([]).map_err(transfer_error)?;
        let (sayer, answers) = mpsc::channel(ANSWERS_MAX * shares.len().max(1));
        for (at, share) in shares.iter().enumerate() {
            inner.answers.wait(share.attempt, at, sayer.clone());
        }
        let (inner, began, is_settled) = (Arc::clone(inner), Instant::now(), false);
        Ok(Self { inner, shares, claims, answers, sayer, from, began, deadline, is_settled })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until every owner has reserved its blocks; returns where they are, in the tickets' order.
    pub(super) async fn reserve(&mut self) -> Result<Vec<(&Ticket, &RemoteRegion)>> {
        while !self.claims.are_granted() {
            self.step(0).await?;
        }
        self.shares.iter().map(Share::region).collect()
    }

    /// Waits until the reads have ended, and lets the owners know that they move along.
    pub(super) async fn read(&mut self, reads: &mut Reads) -> Result<()> {
        loop {
            let moved = reads.moved();
            tokio::select! {
                // What has arrived is worth more than what is said about it.
                biased;
                ended = reads.ended() => return ended.map_err(transfer_error),
                stepped = self.step(moved) => stepped?,
            }
        }
    }

    /// All bytes are here: waits until every owner has left the blocks to this attempt alone.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.claims.settle(self.began.elapsed());
        while !self.claims.are_settled() {
            self.step(0).await?;
        }
        self.is_settled = true;
        Ok(())
    }

    /// Tells the owners that nothing of theirs was needed, and does not wait for what they make of it.
    pub(super) async fn decline(mut self) {
        self.is_settled = true;
        for share in &self.shares {
            let (stage, attempt) = (share.ticket.id, share.attempt);
            let done = Message::Done { stage, attempt, from: Bytes::new() };
            let told = self.inner.agent.notify(&share.owner, done.encode());
            match tokio::time::timeout_at(self.deadline, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "owner not told that it is not needed"),
                Err(_) => tracing::warn!("owner not told in time that it is not needed"),
            }
        }
    }

    /// Says what is due, and waits until an answer or the time for more has come.
    ///
    /// Cancel safe: nothing that was said or heard is forgotten.
    async fn step(&mut self, moved: u64) -> Result<()> {
        let now = self.began.elapsed();
        for (at, say) in self.claims.due(moved, now) {
            self.say(at, say);
        }
        let next = self.claims.next().map_or(self.deadline, |next| self.began + next);
        tokio::select! {
            biased;
            Some((at, answer)) = self.answers.recv() => match answer {
                Ok(answer) => self.hear(at, &answer),
                Err(error) if may_be_lost(&error) => Ok(()),
                Err(error) => Err(transfer_error(error)),
            },
            () = tokio::time::sleep_until(next.min(self.deadline)) => {
                if Instant::now() < self.deadline { Ok(()) } else { Err(self.late()) }
            }
        }
    }

    fn late(&self) -> Error {
        let silent = self.shares.iter().filter(|share| share.granted.is_none());
        let silent: Vec<_> = silent.map(|share| share.owner.name()).collect();
        let message = match &silent[..] {
            [] => "hand-off of KV blocks".to_owned(),
            owners => format!("hand-off of KV blocks: no leave of {owners:?} to read them"),
        };
        Error::new(ErrorKind::DeadlineExceeded, message)
    }

    fn say(&mut self, at: usize, say: Say) {
        let Share { ticket, owner, attempt, .. } = &self.shares[at];
        let (stage, attempt, from) = (ticket.id, *attempt, self.from.clone());
        let message = match say {
            Say::Claim(moved) => Message::Claim { stage, attempt, moved, from },
            Say::Done => Message::Done { stage, attempt, from },
        };
        self.inner.outbox.ask(owner.clone(), message.encode(), at, &self.sayer);
    }

    fn hear(&mut self, at: usize, answer: &Message) -> Result<()> {
        let share = &mut self.shares[at];
        if let (Message::Granted { region, .. }, None) = (answer, &share.granted) {
            let granted = self.inner.agent.load_metadata(region).map_err(transfer_error)?;
            share.granted = Some(granted);
        }
        self.claims.hear(at, answer, self.began.elapsed()).map_err(|refusal| match refusal {
            Refusal::Taken => {
                Error::new(ErrorKind::Conflict, "another worker pulls these KV blocks")
            }
            Refusal::Over => Error::new(ErrorKind::NotFound, "these KV blocks are staged no more"),
        })
    }
}

impl Share {
    /// Returns what was granted, if it is what the ticket said.
    fn region(&self) -> Result<(&Ticket, &RemoteRegion)> {
        let Self { ticket, owner, granted, .. } = self;
        let bytes = (ticket.blocks() * ticket.layout.block_bytes()) as u64;
        let is_owners = |granted: &&RemoteAgent| {
            (granted.name(), granted.incarnation()) == (owner.name(), owner.incarnation())
        };
        let region = granted.as_ref().filter(is_owners).map(RemoteAgent::regions);
        match region {
            Some([region]) if region.len() == bytes => Ok((ticket, region)),
            _ => Err(Error::new(ErrorKind::Protocol, "hand-off grants not what its ticket said")),
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        for Share { ticket, owner, attempt, .. } in self.shares.drain(..) {
            self.inner.answers.forget(&attempt);
            if !self.is_settled {
                let release = Message::Release { stage: ticket.id, attempt };
                self.inner.outbox.put(owner, release.encode());
            }
        }
    }
}

/// Tells whether a word may get through if it is said again.
fn may_be_lost(error: &dynamo_transfer::Error) -> bool {
    use dynamo_transfer::ErrorKind as Kind;
    matches!(error.kind(), Kind::Overloaded | Kind::DeadlineExceeded | Kind::Disconnected)
}

/// Answers that wait, of each owner: it says one to each word, and they are read at once.
const ANSWERS_MAX: usize = 16;
