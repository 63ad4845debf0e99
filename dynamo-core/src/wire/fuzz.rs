//! What has to hold for any bytes: one function per decoder, called by the fuzz targets and by the
//! test that replays what they found.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::Codec;
use super::frame::{self, HEADER_BYTES, Header, Hello, PAYLOAD_BYTES_MAX};
use super::head::Head;
use super::link::Datagram;
use super::session::fuzz as session;
use crate::protocol::{GenerateChunk, GenerateRequest, TraceContext};

/// What is fed, by name.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of the wire.
pub const TARGETS: [Target; 10] = [
    ("frame", fuzz_frame),
    ("hello", fuzz_hello),
    ("reset", fuzz_reset),
    ("head", fuzz_head),
    ("request", fuzz_request),
    ("chunk", fuzz_chunk),
    ("server", fuzz_server),
    ("client", fuzz_client),
    ("datagram", fuzz_datagram),
    ("traceparent", fuzz_traceparent),
];

/// A header that is taken is written as the same bytes.
///
/// # Panics
/// If not.
pub fn fuzz_frame(data: &[u8]) {
    if let Ok(Some(header)) = Header::decode(data) {
        assert!(header.len <= PAYLOAD_BYTES_MAX);
        let mut out = bytes::BytesMut::new();
        let payload = vec![0; header.len];
        frame::put(&mut out, header.kind, header.flags, header.stream, &payload);
        assert_eq!(out[..HEADER_BYTES], data[..HEADER_BYTES]);
    }
}

/// A hello that is taken is written as the same bytes.
///
/// # Panics
/// If not.
pub fn fuzz_hello(data: &[u8]) {
    if let Ok(hello) = Hello::decode(data) {
        assert_eq!(hello.encode(), data);
    }
}

/// An error that is taken survives the way.
///
/// # Panics
/// If not.
pub fn fuzz_reset(data: &[u8]) {
    if let Ok(error) = frame::decode_error(data) {
        let bytes = frame::encode_error(&error);
        let Ok(again) = frame::decode_error(&bytes) else { unreachable!("{error} is not taken") };
        assert_eq!((again.kind(), again.is_retryable()), (error.kind(), error.is_retryable()));
        // What is too long was cut, perhaps within a character.
        let cut = again.message().trim_end_matches(char::REPLACEMENT_CHARACTER);
        assert!(error.message().starts_with(cut));
    }
}

/// A head that is taken survives the way, and what is behind it is untouched.
///
/// # Panics
/// If not.
pub fn fuzz_head(data: &[u8]) {
    if let Ok((head, rest)) = Head::decode(data) {
        assert!(data.ends_with(rest));
        if let Ok(bytes) = head.encode() {
            assert!(Head::decode(&bytes).is_ok_and(|(again, _)| again == head));
        }
    }
}

/// A request that is taken survives the way.
///
/// # Panics
/// If not.
pub fn fuzz_request(data: &[u8]) {
    survives::<GenerateRequest>(data);
}

/// A chunk of an answer that is taken survives the way.
///
/// # Panics
/// If not.
pub fn fuzz_chunk(data: &[u8]) {
    survives::<GenerateChunk>(data);
}

fn survives<T: Serialize + DeserializeOwned + 'static>(data: &[u8]) {
    for codec in Codec::ALL.iter().copied() {
        let Ok(message) = codec.decode::<T>(Bytes::copy_from_slice(data)) else { continue };
        // Compared as bytes: a number that is none is not equal to itself.
        let bytes = codec.encode(&message).ok();
        let again = bytes.clone().and_then(|bytes| codec.decode::<T>(bytes).ok());
        let again = again.and_then(|again| codec.encode(&again).ok());
        assert!(bytes.is_some() && bytes == again);
    }
}

/// A server whose client says anything keeps to its bounds.
///
/// # Panics
/// If not.
pub fn fuzz_server(data: &[u8]) {
    session::server(data);
}

/// A client whose server says anything keeps to its bounds.
///
/// # Panics
/// If not.
pub fn fuzz_client(data: &[u8]) {
    session::client(data);
}

/// A datagram that is taken is written as the same bytes.
///
/// # Panics
/// If not.
pub fn fuzz_datagram(data: &[u8]) {
    if let Ok(datagram) = Datagram::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(datagram.encode(), data);
    }
}

/// A trace that is taken from a caller's text is written as the same text, as far as version 0
/// goes.
///
/// # Panics
/// If not.
pub fn fuzz_traceparent(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(trace) = text.parse::<TraceContext>() {
        let written = trace.to_string();
        assert!(text[2..].starts_with(&written[2..]) && trace.trace_id() != 0);
        assert!(written.parse::<TraceContext>().is_ok_and(|again| again == trace));
    }
}
