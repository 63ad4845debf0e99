//! A peer that speaks the protocol by hand.

use std::sync::Arc;

use tokio::net::UnixStream;

use crate::backend::hostile::{Claim, Raw, is_refused_whatever_it_claims};
use crate::backend::shm::message::{ANSWER_BYTES_MAX, Request, decode_answer, decode_welcome};
use crate::backend::shm::opened::Opened;
use crate::backend::shm::socket::{Inbox, send};
use crate::backend::shm::socket_path;
use crate::peer::PeerAddress;
use crate::wire::Hello;
use crate::{AgentConfig, Result};

struct RawShm {
    stream: UnixStream,
    inbox: Inbox,
}

impl RawShm {
    /// Returns the answer; files that came with it are in the inbox.
    async fn ask(&mut self, request: &Request) -> Result<Vec<u8>> {
        send(&self.stream, &request.encode(), &[]).await.unwrap();
        let answer = self.inbox.message(&self.stream, ANSWER_BYTES_MAX, true).await.unwrap();
        decode_answer(&answer).map(<[u8]>::to_vec)
    }
}

impl Raw for RawShm {
    // Nor does it keep to them: which bytes of an open region are touched is the peer's to check.
    const NAMES_RANGES: bool = false;

    async fn connect(peer: &Arc<PeerAddress>) -> Result<Self> {
        let path = socket_path(peer.shm.unwrap().socket);
        let stream = UnixStream::connect(path).await.unwrap();
        let mut raw = Self { stream, inbox: Inbox::default() };
        let (target_name, name) = (peer.name.clone(), "hostile".to_owned());
        let target_incarnation = peer.incarnation;
        let hello = Hello { target_name, target_incarnation, name, incarnation: 1 };
        let welcome = raw.ask(&Request::Hello { hello, opens: true }).await?;
        decode_welcome(&welcome).unwrap();
        // The page.
        raw.inbox.files(1).unwrap();
        Ok(raw)
    }

    async fn claim(&mut self, claim: &Claim) -> Result<()> {
        let Claim { region, token, right, .. } = *claim;
        let answer = self.ask(&Request::Open { region, token, right, takes_addresses: true }).await;
        let files = answer.as_ref().map_or(0, |answer| Opened::decode(answer).unwrap().files.len());
        self.inbox.files(files).unwrap();
        let slot = Opened::decode(&answer?).unwrap().slot;
        send(&self.stream, &Request::Close { slot }.encode(), &[]).await
    }
}

#[tokio::test]
async fn whatever_a_hostile_peer_claims_is_refused_and_the_owner_is_as_it_was() {
    is_refused_whatever_it_claims::<RawShm>(AgentConfig::default().with_shm(true)).await;
}
