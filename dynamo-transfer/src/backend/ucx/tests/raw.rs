use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::hostile::{Claim, Raw};
use crate::backend::ucx::inbox::{Event, Inbox};
use crate::backend::ucx::library::Library;
use crate::backend::ucx::port::{EndpointId, MESSAGE_ID, Port};
use crate::backend::ucx::protocol::{
    Header, Hello, Kind, RailKind, Rails, Request, Welcome, decode_status,
};
use crate::backend::ucx::worker::Worker;
use crate::backend::ucx::{UcxConfig, sys};
use crate::error::{ErrorKind, Result};
use crate::memory::random;
use crate::peer::PeerAddress;
use crate::wire;

/// A peer that speaks the protocol by hand.
pub(super) struct RawUcx {
    port: Port,
    owner: EndpointId,
    link: u64,
    ops: u64,
    pub(super) rails: Rails,
}

impl RawUcx {
    pub(super) fn start(peer: &PeerAddress) -> Result<Self> {
        let config = UcxConfig::default();
        let library = Library::open(&config.library)?;
        let inbox = Inbox::new(library.functions().ucp_request_free);
        let settings = config.messages();
        let worker = Worker::new(&library, sys::FEATURE_AM, &settings, &inbox)?;
        worker.listen(MESSAGE_ID)?;
        let mut port = Port::new(worker, inbox);
        let owner = port.connect(peer.ucx.as_ref().unwrap())?;
        let mut raw = Self { port, owner, link: random()?, ops: 1000, rails: Rails::default() };
        let (target_name, name) = (peer.name.clone(), "hostile".to_owned());
        let target_incarnation = peer.incarnation;
        let hello = wire::Hello { target_name, target_incarnation, name, incarnation: 1 };
        let hello = Hello { hello, address: raw.port.worker.address()? };
        raw.say(Kind::Hello, 0, hello.encode());
        let (_, welcome) = raw.hear(&[Kind::Welcome]);
        let Welcome { status, rails } = Welcome::decode(&welcome)?;
        raw.rails = rails;
        status.map(|()| raw)
    }

    pub(super) fn say(&mut self, kind: Kind, op: u64, body: Vec<u8>) {
        self.port.send(self.owner, Header::new(kind, self.link, op), body);
    }

    pub(super) fn hear(&mut self, kinds: &[Kind]) -> (Header, Vec<u8>) {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            self.port.progress();
            match self.port.inbox.pop() {
                Some(Event::Control(header, body)) if kinds.contains(&header.kind) => {
                    return (header, body);
                }
                Some(Event::Sent(id)) => drop(self.port.sent(id)),
                _ => {}
            }
        }
        unreachable!("{kinds:?} are not heard")
    }

    /// Has everything sent.
    pub(super) fn settle(&mut self) {
        while self.port.is_draining() {
            self.port.progress();
            if let Some(Event::Sent(id)) = self.port.inbox.pop() {
                self.port.sent(id);
            }
        }
    }

    pub(super) fn refused(&mut self, op: u64, body: Vec<u8>) -> ErrorKind {
        self.say(Kind::Request, op, body);
        let (header, body) = self.hear(&[Kind::Done]);
        assert_eq!(header.op, op);
        decode_status(&body).unwrap().unwrap_err().kind()
    }
}

impl Raw for RawUcx {
    const NAMES_RANGES: bool = true;

    async fn connect(peer: &Arc<PeerAddress>) -> Result<Self> {
        Self::start(peer)
    }

    /// Asks for remote keys every other time.
    async fn claim(&mut self, claim: &Claim) -> Result<()> {
        let Claim { region, token, right, .. } = *claim;
        self.ops += 1;
        let op = self.ops;
        let rail = op.is_multiple_of(2).then_some(RailKind::Cma);
        let request = Request { right, rail, region, token, ranges: claim.ranges() };
        self.say(Kind::Request, op, request.encode());
        let (header, mut body) = self.hear(&[Kind::Accept, Kind::Grant, Kind::Done]);
        assert_eq!(header.op, op);
        if header.kind == Kind::Grant {
            self.say(Kind::Release, op, Vec::new());
            return Ok(());
        }
        self.say(Kind::WriteData, op, claim.bytes());
        if header.kind == Kind::Accept {
            body = self.hear(&[Kind::Done]).1;
        }
        decode_status(&body)?
    }
}
