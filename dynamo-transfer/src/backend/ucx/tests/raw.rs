use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::hostile::{Claim, Raw};
use crate::backend::ucx::inbox::{Event, Inbox, OpKey, Side};
use crate::backend::ucx::library::Library;
use crate::backend::ucx::port::{EndpointId, MESSAGE_ID, Port};
use crate::backend::ucx::protocol::{
    Header, Hello, Kind, RailKind, Rails, Request, Way, Welcome, decode_status,
};
use crate::backend::ucx::stream::Stream;
use crate::backend::ucx::worker::Worker;
use crate::backend::ucx::{UcxConfig, sys};
use crate::error::{ErrorKind, Result};
use crate::memory::{Right, random};
use crate::peer::PeerAddress;
use crate::wire;

/// A peer that speaks the protocol by hand.
pub(in crate::backend::ucx) struct RawUcx {
    port: Port,
    owner: EndpointId,
    link: u64,
    ops: u64,
    pub(in crate::backend::ucx) rails: Rails,
}

impl RawUcx {
    /// Says hello to an owner.
    pub(in crate::backend::ucx) fn start(peer: &PeerAddress) -> Result<Self> {
        let mut port = port()?;
        let owner = port.connect(peer.ucx.as_ref().unwrap())?;
        let mut raw = Self { port, owner, link: random()?, ops: 1000, rails: Rails::default() };
        raw.rails = raw.hello(peer, raw.link)?;
        Ok(raw)
    }

    /// Says hello for a link.
    pub(in crate::backend::ucx) fn hello(
        &mut self,
        peer: &PeerAddress,
        link: u64,
    ) -> Result<Rails> {
        let (target_name, name) = (peer.name.clone(), "hostile".to_owned());
        let target_incarnation = peer.incarnation;
        let hello = wire::Hello { target_name, target_incarnation, name, incarnation: 1 };
        let hello = Hello { hello, address: self.port.worker.address()? };
        self.port.send(self.owner, Header::new(Kind::Hello, link, 0), hello.encode());
        let (header, welcome) = self.hear(&[Kind::Welcome]);
        assert_eq!(header.link, link);
        let Welcome { status, rails } = Welcome::decode(&welcome)?;
        status.map(|()| rails)
    }

    /// Is an owner, of these rails, to the first that says hello to the port.
    pub(in crate::backend::ucx) fn own(mut port: Port, rails: Rails) -> Self {
        let (Header { link, .. }, hello) = hear(&mut port, &[Kind::Hello]);
        let initiator = port.connect(&Hello::decode(&hello).unwrap().address).unwrap();
        let welcome = Welcome { status: Ok(()), rails: rails.clone() };
        let mut raw = Self { port, owner: initiator, link, ops: 1000, rails };
        raw.say(Kind::Welcome, 0, welcome.encode());
        raw
    }

    pub(in crate::backend::ucx) fn say(&mut self, kind: Kind, op: u64, body: Vec<u8>) {
        self.port.send(self.owner, Header::new(kind, self.link, op), body);
    }

    /// Sends a fragment with a checksum.
    pub(in crate::backend::ucx) fn write(&mut self, op: u64, checksum: u32, fragment: Vec<u8>) {
        let header = Header { checksum, ..Header::new(Kind::WriteData, self.link, op) };
        self.port.send(self.owner, header, fragment);
    }

    pub(in crate::backend::ucx) fn hear(&mut self, kinds: &[Kind]) -> (Header, Vec<u8>) {
        hear(&mut self.port, kinds)
    }

    /// Lets data of an operation in.
    pub(in crate::backend::ucx) fn open(&mut self, op: u64, stream: Rc<Stream>) {
        self.port.inbox.open(OpKey { side: Side::Owner, link: self.link, op }, stream);
    }

    /// Waits until it has as many bytes as it is to have; tells whether they fit.
    pub(in crate::backend::ucx) fn filled(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            self.port.progress();
            match self.port.inbox.pop() {
                Some(Event::Filled(_, status)) => return status.is_ok(),
                Some(Event::Sent(id)) => drop(self.port.sent(id)),
                _ => {}
            }
        }
        unreachable!("the data does not come")
    }

    /// Has everything sent.
    pub(in crate::backend::ucx) fn settle(&mut self) {
        while self.port.is_draining() {
            self.port.progress();
            if let Some(Event::Sent(id)) = self.port.inbox.pop() {
                self.port.sent(id);
            }
        }
    }

    pub(in crate::backend::ucx) fn refused(&mut self, op: u64, body: Vec<u8>) -> ErrorKind {
        self.say(Kind::Request, op, body);
        let (header, body) = self.hear(&[Kind::Done]);
        assert_eq!(header.op, op);
        decode_status(&body).unwrap().unwrap_err().kind()
    }
}

/// Returns a port that listens.
pub(in crate::backend::ucx) fn port() -> Result<Port> {
    let config = UcxConfig::default();
    let library = Library::open(&config.library)?;
    let inbox = Inbox::new(library.functions().ucp_request_free);
    let worker = Worker::new(&library, sys::FEATURE_AM, &config.messages(&library), &inbox)?;
    worker.listen(MESSAGE_ID)?;
    Ok(Port::new(worker, inbox))
}

fn hear(port: &mut Port, kinds: &[Kind]) -> (Header, Vec<u8>) {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        port.progress();
        match port.inbox.pop() {
            Some(Event::Control(header, body)) if kinds.contains(&header.kind) => {
                return (header, body);
            }
            Some(Event::Sent(id)) => drop(port.sent(id)),
            _ => {}
        }
    }
    unreachable!("{kinds:?} are not heard")
}

impl Raw for RawUcx {
    const NAMES_RANGES: bool = true;

    async fn connect(peer: &Arc<PeerAddress>) -> Result<Self> {
        Self::start(peer)
    }

    /// Asks for remote keys at times, and at times sends what it writes at once.
    async fn claim(&mut self, claim: &Claim) -> Result<()> {
        let Claim { region, token, right, .. } = *claim;
        self.ops += 1;
        let op = self.ops;
        let way = match op % 3 {
            0 => Way::Rail(RailKind::Cma),
            1 if right == Right::Write => Way::Here(claim.bytes()),
            _ => Way::Messages,
        };
        let request = Request { right, way, region, token, ranges: claim.ranges() };
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
