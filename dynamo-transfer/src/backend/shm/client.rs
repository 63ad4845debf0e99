use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::Link;
use super::message::Request;
use super::open::{Ended, Open};
use super::opened::Opened;
use crate::backend::copies::BRIEF_BYTES_MAX;
use crate::backend::{Backend, Copies, Operation};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::{Mapping, Right};
use crate::peer::PeerAddress;

/// Copies from and to the memory of agents in other processes of this host.
pub(crate) struct ShmClient {
    own: Arc<Inbound>,
    copies: Copies,
    peers: Mutex<HashMap<Arc<PeerAddress>, Arc<Peer>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// A peer, and what is open of it.
struct Peer {
    address: Arc<PeerAddress>,
    state: Mutex<State>,
    /// One at a time connects, or opens a region: the others find it done.
    turns: [tokio::sync::Mutex<()>; 2],
    /// Grows with each operation.
    uses: AtomicU64,
}

#[derive(Default)]
struct State {
    links: [Option<Arc<Link>>; 2],
    opens: HashMap<(u64, Right), Arc<Open>>,
    mappings: Vec<Mapped>,
    retry_at: Option<Instant>,
}

/// A file of the peer, as it is mapped here: regions of one file share the mapping.
struct Mapped {
    file: (u64, u64),
    is_writable: bool,
    mapping: Arc<Mapping>,
}

/// What a link is for: notifications do not wait behind regions, nor these behind them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Regions = 0,
    Notifications = 1,
}

impl ShmClient {
    pub(crate) fn new(
        own: &Arc<Inbound>,
        copies: Copies,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        let (own, peers) = (Arc::clone(own), Mutex::default());
        Arc::new(Self { own, copies, peers, tasks: tasks.clone(), shutdown: shutdown.clone() })
    }

    fn peer(&self, address: &Arc<PeerAddress>) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(address) {
            return Arc::clone(peer);
        }
        peers.retain(|_, peer| Arc::strong_count(peer) > 1 || !peer.lock().is_asleep());
        let peer = Arc::new(Peer {
            address: Arc::clone(address),
            state: Mutex::default(),
            turns: Default::default(),
            uses: AtomicU64::new(0),
        });
        peers.insert(Arc::clone(address), Arc::clone(&peer));
        peer
    }

    /// Returns a link to the peer, under the turn of its purpose.
    async fn link(&self, peer: &Arc<Peer>, purpose: Purpose) -> Result<Arc<Link>> {
        {
            let state = peer.lock();
            if let Some(link) = state.link(purpose) {
                return Ok(link);
            }
            if state.retry_at.is_some_and(|at| Instant::now() < at) {
                let message = "the peer could not be connected to just now";
                return Err(Error::new(ErrorKind::Unreachable, message));
            }
        }
        let address = peer.address.shm.ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer does not share memory")
        })?;
        let opens = purpose == Purpose::Regions;
        let (link, asked) = match Link::connect(&self.own, &peer.address, address, opens).await {
            Ok((link, asked)) => (Arc::new(link), asked),
            Err(error) => {
                peer.lock().retry_at = Some(Instant::now() + BACK_OFF);
                return Err(error);
            }
        };
        peer.lock().links[purpose as usize] = Some(Arc::clone(&link));
        let (peer, driven, shutdown) = (Arc::clone(peer), Arc::clone(&link), self.shutdown.clone());
        self.tasks.spawn(async move {
            let seen = AtomicU64::new(0);
            let ended = tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                ended = driven.drive(asked, || peer.is_unused(&seen), || peer.give_up()) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, peer = peer.address.name, "link broke");
            }
            driven.end();
            peer.forget(&driven, purpose);
        });
        Ok(link)
    }

    /// Returns a region that may be used without asking; asks if there is none.
    async fn open(&self, peer: &Arc<Peer>, operation: &Operation) -> Result<Arc<Open>> {
        if let Some(open) = peer.find(operation) {
            return Ok(open);
        }
        let _turn = peer.turns[Purpose::Regions as usize].lock().await;
        if let Some(open) = peer.find(operation) {
            return Ok(open);
        }
        let link = self.link(peer, Purpose::Regions).await?;
        let swept = peer.lock().sweep();
        drop(swept);
        let (region, token, right) = (operation.remote_id, operation.token, operation.right);
        let takes_addresses = link.process().is_some();
        let request = Request::Open { region, token, right, takes_addresses };
        let (content, files) = link.ask(request).await?;
        let opened = Opened::decode(&content)?;
        let closed_on_error = SlotGuard { link: &link, slot: Some(opened.slot) };
        let lens = opened.files.iter().zip(files);
        let mappings = lens.map(|(len, file)| peer.lock().map(file, *len, right == Right::Write));
        let mappings = mappings.collect::<Result<Vec<_>>>()?;
        closed_on_error.keep();
        let open = Arc::new(Open::new(&link, token, &opened, mappings)?);
        let before = peer.lock().opens.insert((region, right), Arc::clone(&open));
        drop(before);
        // The link may have ended meanwhile, and forgotten what was open, or the region be revoked.
        if link.is_over() {
            peer.forget(&link, Purpose::Regions);
        } else {
            peer.give_up();
        }
        Ok(open)
    }
}

#[async_trait]
impl Backend for ShmClient {
    fn brief_bytes_max(&self) -> u64 {
        BRIEF_BYTES_MAX
    }

    /// Runs the operation if its region is open.
    fn run_brief(&self, operation: &Operation) -> Option<Result<()>> {
        let peer = self.peer(&operation.peer);
        let open = peer.find(operation)?;
        let ended = peer.check(&open, operation).and_then(|()| open.run(operation));
        match ended {
            Ok(Ended::Complete) => Some(Ok(())),
            Ok(Ended::Revoked) => None,
            Err(error) => Some(Err(error)),
        }
    }

    async fn run(&self, operation: Arc<Operation>) -> Result<()> {
        let peer = self.peer(&operation.peer);
        for _ in 0..OPENINGS_MAX {
            let open = self.open(&peer, &operation).await?;
            peer.check(&open, &operation)?;
            if self.copy(&operation, &open).await? == Ended::Complete {
                return Ok(());
            }
        }
        let message = format!("region {} is revoked again and again", operation.remote_id);
        Err(Error::new(ErrorKind::StaleRegion, message))
    }

    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()> {
        let peer = self.peer(peer);
        let link = {
            let _turn = peer.turns[Purpose::Notifications as usize].lock().await;
            self.link(&peer, Purpose::Notifications).await?
        };
        peer.uses.fetch_add(1, Ordering::Relaxed);
        link.ask(Request::Notify(payload)).await.map(|_| ())
    }
}

impl ShmClient {
    async fn copy(&self, operation: &Arc<Operation>, open: &Arc<Open>) -> Result<Ended> {
        let (open, operation, total) = (Arc::clone(open), Arc::clone(operation), operation.total());
        // A thread looks at `cancel` between stripes; what it holds keeps both memories alive.
        let priority = operation.priority;
        let copy = move || open.run(&operation);
        let mut outcome = Ok(Ended::Complete);
        for copied in self.copies.run(total, priority, copy).await {
            outcome = match (outcome, copied) {
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(Ended::Complete), Ok(Ended::Complete)) => Ok(Ended::Complete),
                _ => Ok(Ended::Revoked),
            };
        }
        outcome
    }
}

impl Peer {
    /// Finds what is open for an operation, by the very token that opened it.
    fn find(&self, operation: &Operation) -> Option<Arc<Open>> {
        let key = (operation.remote_id, operation.right);
        let open = self.lock().opens.get(&key).map(Arc::clone)?;
        (open.token == operation.token && open.is_usable()).then_some(open)
    }

    /// Checks what an operation means to do with what is open, and notes that it is used.
    fn check(&self, open: &Open, operation: &Operation) -> Result<()> {
        open.touch(self.uses.fetch_add(1, Ordering::Relaxed));
        let checked = operation.remote_ranges.check(open.len());
        checked.map_err(|error| error.in_region(operation.remote_id))
    }

    /// Tells whether nothing was used since it was asked before.
    fn is_unused(&self, seen: &AtomicU64) -> bool {
        let uses = self.uses.load(Ordering::Relaxed);
        let is_used = |open: &Arc<Open>| Arc::strong_count(open) > 1;
        seen.swap(uses, Ordering::Relaxed) == uses && !self.lock().opens.values().any(is_used)
    }

    /// Closes what is revoked, as soon as nobody is at it.
    fn give_up(&self) {
        let revoked = self.lock().take_revoked();
        // Not under the lock: unmapping takes its time.
        drop(revoked);
    }

    /// Gives up a link that has ended, and what was open over it.
    fn forget(&self, link: &Arc<Link>, purpose: Purpose) {
        let mut state = self.lock();
        let place = &mut state.links[purpose as usize];
        let ended = place.take_if(|other| Arc::ptr_eq(other, link));
        let (mut opens, mut mappings) = (HashMap::new(), Vec::new());
        if purpose == Purpose::Regions {
            opens = state.opens.extract_if(|_, open| Arc::ptr_eq(&open.link, link)).collect();
            mappings = std::mem::take(&mut state.mappings);
        }
        drop(state);
        // Not under the lock: unmapping takes its time.
        drop((ended, opens, mappings));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn link(&self, purpose: Purpose) -> Option<Arc<Link>> {
        self.links[purpose as usize].clone().filter(|link| !link.is_over())
    }

    fn is_asleep(&self) -> bool {
        self.links.iter().all(Option::is_none)
    }

    fn take_revoked(&mut self) -> Vec<Arc<Open>> {
        let revoked = self.opens.extract_if(|_, open| !open.is_usable());
        revoked.map(|(_, open)| open).collect()
    }

    /// Makes room: returns what is revoked, and what has not been used for longest beyond the limit.
    fn sweep(&mut self) -> (Vec<Arc<Open>>, Vec<Mapped>) {
        let mut swept = self.take_revoked();
        if self.opens.len() >= OPENS_MAX {
            let idle = self.opens.iter().filter(|(_, open)| Arc::strong_count(open) == 1);
            let oldest = idle.min_by_key(|(_, open)| open.used.load(Ordering::Relaxed));
            let oldest = oldest.map(|(key, _)| *key);
            swept.extend(oldest.and_then(|key| self.opens.remove(&key)));
        }
        let mut spare = self.mappings.len().saturating_sub(MAPPINGS_MAX);
        let unused = self.mappings.extract_if(.., |mapped| {
            let goes = spare > 0 && Arc::strong_count(&mapped.mapping) == 1;
            spare -= usize::from(goes);
            goes
        });
        let unused = unused.collect();
        (swept, unused)
    }

    /// Maps a file of the peer, unless it is mapped.
    fn map(&mut self, file: OwnedFd, len: u64, is_writable: bool) -> Result<Arc<Mapping>> {
        let failed = |error| {
            let message = "the peer's memory cannot be mapped";
            Error::new(ErrorKind::BackendUnavailable, message).with_source(error)
        };
        let file = std::fs::File::from(file);
        let about = file.metadata().map_err(failed)?;
        let file_id = (about.dev(), about.ino());
        let same = |mapped: &&Mapped| mapped.file == file_id && mapped.is_writable == is_writable;
        if let Some(mapped) = self.mappings.iter().find(same)
            && mapped.mapping.span().len() as u64 == len
        {
            return Ok(Arc::clone(&mapped.mapping));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mapping = Arc::new(Mapping::of(file.into(), len, is_writable).map_err(failed)?);
        self.mappings.push(Mapped { file: file_id, is_writable, mapping: Arc::clone(&mapping) });
        Ok(mapping)
    }
}

/// Gives a slot back that was opened and cannot be used.
struct SlotGuard<'a> {
    link: &'a Link,
    slot: Option<u32>,
}

impl SlotGuard<'_> {
    fn keep(mut self) {
        self.slot = None;
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.link.close(slot);
        }
    }
}

/// Regions of a peer that are kept open: an owner has twice the slots.
const OPENS_MAX: usize = 256;

/// Mappings that are kept though nothing that is open uses them: pages found once are found again.
const MAPPINGS_MAX: usize = 16;

/// How often an operation whose region is revoked under it asks again.
const OPENINGS_MAX: u32 = 3;

/// How soon a peer that could not be reached is tried again.
const BACK_OFF: Duration = Duration::from_secs(1);
