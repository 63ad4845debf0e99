//! A peer that speaks a backend's protocol by hand, and claims what it was not granted: an owner
//! refuses all of it, and is as it was.

use std::sync::Arc;
use std::time::Duration;

use crate::descriptor::Ranges;
use crate::memory::{Right, Token};
use crate::peer::PeerAddress;
use crate::{
    Agent, AgentConfig, ErrorKind, Grant, HostBuffer, RegisteredRegion, RemoteRegion, Result,
    TransferOptions,
};

/// The protocol of a backend, spoken by hand.
pub(super) trait Raw: Sized {
    /// Whether the owner sees which ranges are meant.
    const NAMES_RANGES: bool;

    /// Says hello.
    async fn connect(peer: &Arc<PeerAddress>) -> Result<Self>;

    /// Claims; a write that is granted is brought to its end, and the bytes of one that is not are
    /// sent all the same.
    async fn claim(&mut self, claim: &Claim) -> Result<()>;
}

/// What a peer says that it may do.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) region: u64,
    pub(super) token: Token,
    pub(super) right: Right,
    pub(super) ranges: Vec<(u64, u64)>,
    /// What is written.
    pub(super) byte: u8,
}

/// Has everything claimed of an owner that is started with `config`.
pub(super) async fn is_refused_whatever_it_claims<R: Raw>(config: AgentConfig) {
    let start = |name| Agent::start(config.clone().with_name(name));
    let owner = start("owner").await.unwrap();
    let writable = owner.register_peer_writable(vec![sevens()]).unwrap();
    let readable = owner.register(vec![sevens()]).unwrap();
    let both = [grant(&owner, writable.grant()), grant(&owner, readable.grant())];
    let mut raw = R::connect(&both[0].peer).await.unwrap();
    // It is understood: what is refused below is not refused for its form.
    let good = claim(&both[0], Right::Write);
    raw.claim(&good).await.unwrap();

    forged(&mut raw, &both).await;
    let less = grant(&owner, writable.grant().read_only());
    refused(&mut raw, claim(&less, Right::Write), ErrorKind::PermissionDenied).await;
    let wider = Token { is_writable: true, ..less.token };
    refused(&mut raw, good.with(wider), ErrorKind::PermissionDenied).await;
    expired(&mut raw, &owner, &writable).await;
    if R::NAMES_RANGES {
        for range in [(LEN - 6, 7), (LEN, 1), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 40, 1)] {
            let ranges = vec![(0, 8), range];
            let outside = Claim { ranges, ..good.clone() };
            refused(&mut raw, outside, ErrorKind::OutOfBounds).await;
        }
    }
    let again = replayed(&mut raw, &owner).await;

    // The owner serves who is honest, its memory is as it was, and nothing holds it.
    let initiator = start("initiator").await.unwrap();
    for region in &both {
        let target = initiator.register_mut(vec![HostBuffer::new(BYTES)]).unwrap();
        let (local, remote) = (target.descriptor([(0, LEN)]), region.descriptor([(0, LEN)]));
        let read = initiator.read(local.unwrap(), remote.unwrap(), TransferOptions::default());
        read.await.unwrap();
        assert!(target.close().await[0].iter().all(|byte| *byte == 7));
    }
    for region in [writable, readable, again] {
        closes(region).await;
    }
    owner.shutdown().await;

    // Its successor of the same name knows nothing of what it granted.
    let successor = start("owner").await.unwrap();
    let region = successor.register_peer_writable(vec![sevens()]).unwrap();
    let fresh = grant(&successor, region.grant());
    assert_eq!(fresh.id, good.region, "the same number, and another region");
    let incarnation = both[0].peer.incarnation;
    let meant = Arc::new(PeerAddress { incarnation, ..(*fresh.peer).clone() });
    let error = R::connect(&meant).await.err().expect("another one is meant");
    assert_eq!(error.kind(), ErrorKind::StaleRegion);
    let mut raw = R::connect(&fresh.peer).await.unwrap();
    refused(&mut raw, good.clone(), ErrorKind::StaleRegion).await;
    let renewed = Token { generation: fresh.token.generation, ..good.token };
    refused(&mut raw, good.with(renewed), ErrorKind::PermissionDenied).await;
    raw.claim(&claim(&fresh, Right::Write)).await.unwrap();
    closes(region).await;
    successor.shutdown().await;
    initiator.shutdown().await;
}

/// Tokens with any one bit flipped, or of another region.
async fn forged<R: Raw>(raw: &mut R, [writable, readable]: &[RemoteRegion; 2]) {
    let good = claim(writable, Right::Write);
    let token = good.token;
    for bit in 0..128 {
        let forged = Token { proof: token.proof ^ 1 << bit, ..token };
        refused(raw, good.with(forged), ErrorKind::PermissionDenied).await;
    }
    for bit in 0..64 {
        let forged = Token { generation: token.generation ^ 1 << bit, ..token };
        refused(raw, good.with(forged), ErrorKind::StaleRegion).await;
        let forged = Token { expires_ms: token.expires_ms ^ 1 << bit, ..token };
        refused(raw, good.with(forged), ErrorKind::PermissionDenied).await;
    }
    for region in [readable.id, 99, u64::MAX] {
        refused(raw, Claim { region, ..good.clone() }, ErrorKind::StaleRegion).await;
    }
    let read_only = claim(readable, Right::Write);
    refused(raw, read_only.clone(), ErrorKind::PermissionDenied).await;
    let wider = Token { is_writable: true, ..readable.token };
    refused(raw, read_only.with(wider), ErrorKind::PermissionDenied).await;
    let mixed = Token { proof: token.proof, ..readable.token };
    let mixed = Claim { right: Right::Read, ..read_only.with(mixed) };
    refused(raw, mixed, ErrorKind::PermissionDenied).await;
}

/// A grant whose time is over, and what it would be with more of it.
async fn expired<R: Raw>(raw: &mut R, owner: &Agent, region: &RegisteredRegion<HostBuffer>) {
    let ttl = Duration::from_millis(1);
    let short = grant(owner, region.grant().with_ttl(ttl));
    tokio::time::sleep(2 * ttl).await;
    for right in [Right::Read, Right::Write] {
        let late = claim(&short, right);
        refused(raw, late.clone(), ErrorKind::PermissionDenied).await;
        for expires_ms in [0, short.token.expires_ms + 60_000, u64::MAX] {
            let longer = late.with(Token { expires_ms, ..short.token });
            refused(raw, longer, ErrorKind::PermissionDenied).await;
        }
    }
}

/// Uses a grant again after its region was closed, and its memory was registered once more. Returns
/// that region.
async fn replayed<R: Raw>(raw: &mut R, owner: &Agent) -> RegisteredRegion<HostBuffer> {
    let first = owner.register_peer_writable(vec![sevens()]).unwrap();
    let old = claim(&grant(owner, first.grant()), Right::Write);
    raw.claim(&old).await.unwrap();
    let memory = closes(first).await;
    refused(raw, old.clone(), ErrorKind::StaleRegion).await;
    let second = owner.register_peer_writable(memory).unwrap();
    let new = grant(owner, second.grant());
    for region in [old.region, new.id] {
        refused(raw, Claim { region, ..old.clone() }, ErrorKind::StaleRegion).await;
    }
    let renewed = Token { generation: new.token.generation, ..old.token };
    let renewed = Claim { region: new.id, ..old.with(renewed) };
    refused(raw, renewed, ErrorKind::PermissionDenied).await;
    raw.claim(&claim(&new, Right::Write)).await.unwrap();
    refused(raw, old, ErrorKind::StaleRegion).await;
    second
}

impl Claim {
    pub(super) fn ranges(&self) -> Ranges {
        Ranges::unchecked(self.ranges.iter().copied())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        vec![self.byte; usize::try_from(self.ranges().total()).unwrap()]
    }

    fn with(&self, token: Token) -> Self {
        Self { token, ..self.clone() }
    }
}

fn claim(region: &RemoteRegion, right: Right) -> Claim {
    let ranges = vec![(0, 8), (64, 8)];
    Claim { region: region.id, token: region.token, right, ranges, byte: 7 }
}

async fn refused<R: Raw>(raw: &mut R, claim: Claim, kind: ErrorKind) {
    let claim = Claim { byte: 9, ..claim };
    let verdict = tokio::time::timeout(PATIENCE, raw.claim(&claim)).await.expect("it answers");
    assert_eq!(verdict.expect_err("it is not granted").kind(), kind, "{claim:?}");
}

fn grant(owner: &Agent, grant: Grant) -> RemoteRegion {
    owner.load_metadata(&owner.metadata([grant]).unwrap()).unwrap().regions()[0].clone()
}

async fn closes(region: RegisteredRegion<HostBuffer>) -> Vec<HostBuffer> {
    let memory = tokio::time::timeout(PATIENCE, region.close()).await.expect("no lease is left");
    assert!(memory[0].iter().all(|byte| *byte == 7));
    memory
}

fn sevens() -> HostBuffer {
    let mut buffer = HostBuffer::new(BYTES);
    buffer.fill(7);
    buffer
}

const BYTES: usize = 4096;
const LEN: u64 = BYTES as u64;
const PATIENCE: Duration = Duration::from_secs(20);
