//! Transfers with a file or a device's memory at one end: what the processor, and so a network, does not
//! reach by itself.
//!
//! ```text
//! host ── engine ── file            at once, if both ends are in this process and the engine can
//! pinned ── engine ── device
//! device ── engine ── device
//!
//! file ── engine ── bounce ── engine ── device      else over host memory that is bounced off:
//! file ── engine ── bounce ── network ── a peer     one buffer is filled while another is emptied
//! ```

mod bounce;
mod direct;
mod end;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(crate) use bounce::{Bounce, Bounces};
pub(crate) use end::{End, Places};

use super::Progress;
use crate::error::{Error, Result};
use crate::memory::{Leased, Right};
use crate::plan::{Plan, Stripe};
use crate::vocabulary::BackendKind;

/// A transfer that an engine has part in.
pub(crate) struct Staged {
    /// What is done to the remote end.
    pub(crate) right: Right,
    pub(crate) local: Leased,
    pub(crate) plan: Plan,
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: Arc<Progress>,
}

impl Staged {
    /// Moves everything between two ends in this process; tells who did.
    pub(crate) async fn run_here(
        mut self,
        remote: &Leased,
        bounces: &Bounces,
    ) -> Result<BackendKind> {
        self.local.check_apart(remote)?;
        let local = self.local.clone();
        let Some(direct) = direct::Direct::between(&local, remote) else {
            let mover = mover([local.engine(), remote.engine()]);
            return self.run_over(remote, bounces).await.map(|()| mover);
        };
        while let Some(stripe) = self.next(direct.stripe_bytes()) {
            self.begin();
            direct.run(self.right, &stripe).await?;
            self.advance(&stripe);
        }
        self.check().map(|()| direct.kind())
    }

    /// Moves everything over host memory.
    pub(crate) async fn run_over(mut self, remote: &dyn End, bounces: &Bounces) -> Result<()> {
        if self.plan.is_over() {
            return Ok(());
        }
        let local: &dyn End = &self.local.clone();
        // Another device at the other end makes do with what is pinned for the first one.
        let copier = local.copier().or_else(|| remote.copier());
        let count = if self.plan.total() > bounces.bytes() { 2 } else { 1 };
        let mut idle = bounces.take(count, copier).await?;
        let mut filled: Option<(Arc<Bounce>, Stripe)> = None;
        loop {
            let next = match idle.pop() {
                Some(bounce) => self.next(bounces.bytes()).map(|stripe| (bounce, stripe)),
                None => None,
            };
            if filled.is_none() && next.is_none() {
                return self.check();
            }
            let fill = async {
                let Some((bounce, stripe)) = &next else { return Ok(()) };
                let (source, places) = match self.right {
                    Right::Read => (remote, stripe.remote().collect()),
                    Right::Write => (local, stripe.local().collect()),
                };
                source.pass(Right::Read, bounce, places).await
            };
            let empty = async {
                let Some((bounce, stripe)) = &filled else { return Ok(()) };
                self.begin();
                let (target, places) = match self.right {
                    Right::Read => (local, stripe.local().collect()),
                    Right::Write => (remote, stripe.remote().collect()),
                };
                target.pass(Right::Write, bounce, places).await
            };
            // Both end, whatever becomes of the other: nothing is under way when this returns.
            let (is_filled, is_emptied) = tokio::join!(fill, empty);
            is_emptied?;
            if let Some((bounce, stripe)) = filled.take() {
                self.advance(&stripe);
                idle.push(bounce);
            }
            is_filled?;
            filled = next;
        }
    }

    /// Hands out the next stripe; none once the transfer is given up.
    fn next(&mut self, bytes_max: u64) -> Option<Stripe> {
        if self.cancel.is_cancelled() { None } else { self.plan.next(bytes_max, usize::MAX) }
    }

    fn begin(&self) {
        self.progress.begin();
    }

    fn advance(&self, stripe: &Stripe) {
        self.progress.advance(stripe);
    }

    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        Ok(())
    }
}

/// Names who moves bytes between two ends in this process: the slower of their engines.
pub(crate) fn mover(engines: [Option<BackendKind>; 2]) -> BackendKind {
    let slowest = [BackendKind::File, BackendKind::Device];
    slowest.into_iter().find(|kind| engines.contains(&Some(*kind))).unwrap_or(BackendKind::Memcpy)
}
