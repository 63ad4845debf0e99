use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::{GetResult, GetResultPayload, ObjectStoreExt};
use tokio::time::Instant;

use super::format::HEADER_BYTES;
use super::request::Failure;
use super::{INLINE_BYTES_MAX, Inner, ObjectTier};
use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::{Damage, Loaded, Miss, MissReason};

impl ObjectTier {
    /// Fills each target with its block; the outcomes are in their order.
    ///
    /// A block is a hit only if its bytes have the digest that it was stored with. One that is damaged
    /// is deleted. No more than [`in_flight`](super::ObjectConfig::in_flight) requests are under way at
    /// once, and the call waits, in order, while others have the places.
    ///
    /// # Cancel safety
    /// If it is dropped, targets are freed as soon as nothing writes to them.
    pub async fn load<B>(&self, targets: Vec<(BlockKey, B)>) -> Vec<Result<Loaded<B>, Miss<B>>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (inner, timing) = (Arc::clone(&self.0), self.0.pace.begin(targets.len()));
        let outcomes: Vec<_> = stream::iter(targets)
            .map(move |(key, target)| {
                let inner = Arc::clone(&inner);
                async move { inner.load_one(&key, target).await }
            })
            .buffered(self.0.config.in_flight)
            .collect()
            .await;
        let hits = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok().map(Loaded::key));
        let hits: Vec<_> = hits.collect();
        timing.end(hits.len());
        self.0.used(&hits);
        self.0.make_room().await;
        outcomes
    }
}

impl Inner {
    async fn load_one<B>(&self, key: &BlockKey, target: B) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (begun, seen) = (Instant::now(), self.index().now());
        let outcome = self.fetch(key, target).await;
        let mut index = self.index();
        match outcome.as_ref().map_err(|miss| &miss.reason) {
            Ok(_) => drop(index.learn(key, seen)),
            Err(MissReason::Absent | MissReason::Damaged(_)) => {
                index.lack(&key.identity, Instant::now());
            }
            Err(_) => {}
        }
        let bytes = self.format.block_bytes() as u64;
        index.count(|stats| match &outcome {
            Ok(_) => {
                stats.hits_total += 1;
                stats.read_bytes_total += bytes;
                stats.load_time_total += begun.elapsed();
            }
            Err(_) => stats.misses_total += 1,
        });
        outcome
    }

    async fn fetch<B>(&self, key: &BlockKey, mut target: B) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (expected, found) = (self.format.block_bytes(), target.as_mut().len());
        if expected != found {
            return Err(miss(MissReason::Length { expected, found }, target));
        }
        let _place = match self.place().await {
            Ok(place) => place,
            Err(failure) => return Err(miss(failure.into(), target)),
        };
        let (header, target) = self.read(&key.identity, target).await?;
        let loaded = match self.format.digest(&key.identity, &header) {
            Some(digest) => self.verify(key, digest, target).await,
            None => Err(miss(MissReason::Damaged(Damage::Foreign), target)),
        };
        if matches!(&loaded, Err(Miss { reason: MissReason::Damaged(_), .. })) {
            self.discard(&key.identity).await;
        }
        loaded
    }

    /// Reads an object's header, and its block into the target.
    async fn read<B>(
        &self,
        identity: &BlockIdentity,
        mut target: B,
    ) -> Result<([u8; HEADER_BYTES], B), Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let path = self.format.path(identity);
        let mut attempts = self.attempts();
        loop {
            let failure = match self.within(self.store.get(&path)).await {
                Ok(found) if !self.is_sized(&found.meta) => {
                    let is_short = found.meta.size < self.format.object_bytes();
                    let damage = if is_short { Damage::Truncated } else { Damage::Foreign };
                    self.discard(identity).await;
                    return Err(miss(MissReason::Damaged(damage), target));
                }
                Ok(found) => match self.body(found, target).await {
                    (read, None) => {
                        let reason = read.err().unwrap_or(Failure::Closed).into();
                        return Err(Miss { reason, target: None });
                    }
                    (Ok(header), Some(target)) => return Ok((header, target)),
                    (Err(failure), Some(back)) => {
                        target = back;
                        failure
                    }
                },
                Err(failure) => failure,
            };
            if let Err(failure) = attempts.again(failure).await {
                return Err(miss(failure.into(), target));
            }
        }
    }

    /// Reads a body; the target comes back unless a thread still writes to it.
    async fn body<B>(
        &self,
        found: GetResult,
        mut target: B,
    ) -> (Result<[u8; HEADER_BYTES], Failure>, Option<B>)
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let file = match found.payload {
            GetResultPayload::Stream(body) => {
                let read = self.within(collect(body, target.as_mut())).await;
                return (read.and_then(|read| read), Some(target));
            }
            GetResultPayload::File(file, _) => file,
        };
        let read = self.tasks.spawn_blocking(move || (read_file(file, target.as_mut()), target));
        match tokio::time::timeout(self.config.request_timeout, read).await {
            Ok(Ok((read, target))) => (read, Some(target)),
            Ok(Err(_)) => (Err(Failure::Closed), None),
            Err(_) => (Err(Failure::Overdue(self.config.request_timeout)), None),
        }
    }

    async fn verify<B>(
        &self,
        key: &BlockKey,
        digest: [u8; 32],
        target: B,
    ) -> Result<Loaded<B>, Miss<B>>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let key = *key;
        let work = move || Loaded::verify(key, &digest, target);
        if self.format.block_bytes() <= INLINE_BYTES_MAX {
            return work();
        }
        let verified = self.tasks.spawn_blocking(work).await;
        verified.unwrap_or(Err(Miss { reason: MissReason::Closed, target: None }))
    }

    /// Deletes an object that is no good; the next store writes over what cannot be deleted.
    async fn discard(&self, identity: &BlockIdentity) {
        if let Err(error) = self.delete(identity).await {
            tracing::debug!(?identity, %error, "a damaged object stays");
            self.index().spoil(identity);
        }
    }
}

/// Takes a body as it comes: each byte is copied once, behind the header.
async fn collect(
    mut body: BoxStream<'static, object_store::Result<Bytes>>,
    target: &mut [u8],
) -> object_store::Result<Result<[u8; HEADER_BYTES], Failure>> {
    let (mut header, mut at) = ([0; HEADER_BYTES], 0);
    while let Some(mut chunk) = body.try_next().await? {
        if at < HEADER_BYTES {
            let part = chunk.split_to(chunk.len().min(HEADER_BYTES - at));
            header[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        let begin = at - HEADER_BYTES.min(at);
        match target.get_mut(begin..begin + chunk.len()) {
            Some(place) => place.copy_from_slice(&chunk),
            // More than was announced.
            None => return Ok(Err(Failure::Short(at))),
        }
        at += chunk.len();
    }
    let is_whole = at == HEADER_BYTES + target.len();
    Ok(if is_whole { Ok(header) } else { Err(Failure::Short(at)) })
}

/// Reads a file from its beginning, the block straight into the target.
fn read_file(mut file: File, target: &mut [u8]) -> Result<[u8; HEADER_BYTES], Failure> {
    let mut header = [0; HEADER_BYTES];
    let read = file.read_exact(&mut header).and_then(|()| file.read_exact(target));
    read.map_err(|error| {
        Failure::Failed(object_store::Error::Generic { store: "file", source: error.into() })
    })?;
    Ok(header)
}

impl From<Failure> for MissReason {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Absent => Self::Absent,
            Failure::Closed => Self::Closed,
            failure => Self::Io(Box::new(failure)),
        }
    }
}

fn miss<B>(reason: MissReason, target: B) -> Miss<B> {
    Miss { reason, target: Some(target) }
}
