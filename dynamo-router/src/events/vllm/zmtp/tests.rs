use std::time::Duration;

use dynamo_core::Result;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::frame::{
    GREETING_BYTES, Inbox, Received, check_greeting, fuzz, greeting, property, write_command,
    write_message, write_property,
};
use super::{Connection, Limits, Role};

#[test]
fn a_greeting_says_version_and_security() {
    assert_eq!(check_greeting(&greeting()), Ok(1));
    let with = |at: usize, byte| {
        let mut bytes = greeting();
        bytes[at] = byte;
        check_greeting(&bytes)
    };
    assert_eq!(with(11, 0), Ok(0), "3.0");
    assert_eq!(with(10, 4), Ok(1), "later than 3.1");
    assert_eq!(with(10, 2).unwrap_err().what, "the peer's ZMTP is older than 3.0");
    assert_eq!(with(0, b'H').unwrap_err().what, "the peer does not speak ZMTP");
    assert_eq!(with(12, b'C').unwrap_err().what, "the peer wants security");
    assert_eq!(with(16, b'S').unwrap_err().what, "the peer wants security");
}

#[test]
fn properties_are_found_whatever_the_case_of_their_names() {
    let mut body = Vec::new();
    write_property(&mut body, "Identity", "");
    write_property(&mut body, "Socket-Type", "PUB");
    assert_eq!(property(&body, "socket-type"), Some(&b"PUB"[..]));
    assert_eq!(property(&body, "Identity"), Some(&b""[..]));
    assert_eq!(property(&body, "other"), None);
    assert!((0..body.len()).all(|len| property(&body[..len], "socket-type").is_none()));
}

#[test]
fn what_is_too_large_is_refused_by_its_head() {
    for (bytes, what) in [
        (&[0, 101][..], "a message that is too large"),
        (&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "a message that is too large"),
        (&[8, 0], "a frame with flags that mean nothing"),
        (&[5, 0], "a frame with flags that mean nothing"),
        (&[4, 0], "a command without a name"),
        (&[1, 0].repeat(8), "a message of too many parts"),
    ] {
        let mut inbox = Inbox::new(100);
        inbox.push(bytes);
        assert_eq!(inbox.next().unwrap_err().what, what, "{bytes:?}");
    }
    let mut inbox = Inbox::new(100);
    let mut bytes = Vec::new();
    write_message(&mut bytes, &[&[7; 60], &[7; 60]]);
    inbox.push(&bytes);
    assert_eq!(inbox.next().unwrap_err().what, "a message that is too large", "all parts count");
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(
        messages in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..4), 1..4),
        piece in 1..700_usize,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for parts in messages {
            let slices: Vec<_> = parts.iter().map(Vec::as_slice).collect();
            write_message(&mut bytes, &slices);
            write_command(&mut bytes, "PING", &parts[0]);
            let body = parts[0].clone();
            expected.extend([
                Received::Message(parts),
                Received::Command { name: b"PING".to_vec(), body },
            ]);
        }
        let (mut inbox, mut received) = (Inbox::new(2000), Vec::new());
        for piece in bytes.chunks(piece) {
            inbox.push(piece);
            while let Some(next) = inbox.next().unwrap() {
                received.push(next);
            }
        }
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn whatever_arrives_is_cut_alike_in_any_pieces(
        bytes in prop::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 0..200),
    ) {
        fuzz(&bytes);
    }
}

const LIMITS: Limits = Limits {
    message_bytes: 1000,
    handshake: Duration::from_secs(5),
    heartbeat: Duration::from_secs(10),
};

/// The other end of a connection, of which each byte is looked at.
struct Far {
    stream: DuplexStream,
    inbox: Inbox,
}

impl Far {
    async fn next(&mut self) -> Received {
        loop {
            if let Some(next) = self.inbox.next().unwrap() {
                return next;
            }
            let mut bytes = [0; 100];
            let read = self.stream.read(&mut bytes).await.unwrap();
            assert!(read > 0, "closed");
            self.inbox.push(&bytes[..read]);
        }
    }

    async fn command(&mut self, name: &str, body: &[u8]) {
        let mut bytes = Vec::new();
        write_command(&mut bytes, name, body);
        self.stream.write_all(&bytes).await.unwrap();
    }
}

/// Connects to a peer of version 3.`minor` that is a `socket`.
async fn meet(role: Role<'_>, minor: u8, socket: &str) -> (Result<Connection>, Far) {
    let (near, stream) = duplex(10_000);
    let mut far = Far { stream, inbox: Inbox::new(1000) };
    let greets = async {
        let mut theirs = greeting();
        theirs[11] = minor;
        far.stream.write_all(&theirs).await.unwrap();
        let mut properties = Vec::new();
        write_property(&mut properties, "Socket-Type", socket);
        far.command("READY", &properties).await;
        far.stream.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
        let ready = far.next().await;
        assert!(matches!(&ready, Received::Command { name, .. } if name == b"READY"), "{ready:?}");
    };
    let (connection, ()) = tokio::join!(Connection::open(Box::new(near), role, LIMITS), greets);
    (connection, far)
}

#[tokio::test]
async fn a_subscription_is_a_command_or_a_message_as_the_peer_knows_it() {
    let (connection, mut far) = meet(Role::Subscriber("kv"), 1, "PUB").await;
    connection.unwrap();
    let command = Received::Command { name: b"SUBSCRIBE".to_vec(), body: b"kv".to_vec() };
    assert_eq!(far.next().await, command);
    let (connection, mut far) = meet(Role::Subscriber("kv"), 0, "XPUB").await;
    connection.unwrap();
    assert_eq!(far.next().await, Received::Message(vec![b"\x01kv".to_vec()]));
}

#[tokio::test]
async fn a_peer_that_is_no_publisher_is_refused() {
    let (connection, _far) = meet(Role::Subscriber(""), 1, "PULL").await;
    assert_eq!(connection.unwrap_err().message(), "a PULL is no peer of a SUB");
    let (connection, _far) = meet(Role::Dealer, 1, "PUB").await;
    assert_eq!(connection.unwrap_err().message(), "a PUB is no peer of a DEALER");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_greet_is_given_up() {
    let (near, _far) = duplex(10_000);
    let connection = Connection::open(Box::new(near), Role::Dealer, LIMITS).await;
    assert_eq!(connection.unwrap_err().message(), "the peer does not greet");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_asked_and_then_given_up_if_it_knows_how_to_answer() {
    let (connection, mut far) = meet(Role::Dealer, 1, "ROUTER").await;
    let mut connection = connection.unwrap();
    let answers = async {
        for _ in 0..3 {
            let ping = Received::Command { name: b"PING".to_vec(), body: vec![0, 0] };
            assert_eq!(far.next().await, ping);
            far.command("PONG", &[]).await;
        }
    };
    tokio::select! {
        received = connection.receive() => panic!("{received:?}"),
        () = answers => {}
    }
    let error = connection.receive().await.unwrap_err();
    assert_eq!(error.message(), "the peer is silent");

    let (connection, mut far) = meet(Role::Dealer, 0, "ROUTER").await;
    let mut connection = connection.unwrap();
    let speaks = async {
        tokio::time::sleep(LIMITS.heartbeat * 100).await;
        let mut bytes = Vec::new();
        write_message(&mut bytes, &[b"at last"]);
        far.stream.write_all(&bytes).await.unwrap();
    };
    let (received, ()) = tokio::join!(connection.receive(), speaks);
    assert_eq!(received.unwrap(), [b"at last"]);
}

#[tokio::test]
async fn a_sign_of_life_is_given_to_who_asks() {
    let (connection, mut far) = meet(Role::Dealer, 1, "ROUTER").await;
    let mut connection = connection.unwrap();
    let asks = async {
        far.command("PING", b"\x00\x0acontext").await;
        let pong = Received::Command { name: b"PONG".to_vec(), body: b"context".to_vec() };
        assert_eq!(far.next().await, pong);
    };
    tokio::select! {
        received = connection.receive() => panic!("{received:?}"),
        () = asks => {}
    }
}

#[tokio::test]
async fn what_a_peer_refuses_with_is_said() {
    let (connection, mut far) = meet(Role::Dealer, 1, "ROUTER").await;
    far.command("ERROR", b"\x03not").await;
    let error = connection.unwrap().receive().await.unwrap_err();
    assert_eq!(error.message(), "the peer refuses: not");
    let (connection, far) = meet(Role::Dealer, 1, "ROUTER").await;
    drop(far);
    let error = connection.unwrap().receive().await.unwrap_err();
    assert_eq!(error.message(), "the peer has closed");
}
