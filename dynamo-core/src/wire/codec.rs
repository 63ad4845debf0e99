//! Messages as bytes, with a limit on what decoding may allocate.
//!
//! A connection has one codec, chosen by the client. `Bytes` are never encoded: they cross as they
//! are, whatever the codec.

use std::any::{Any, type_name};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// How messages are encoded.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Codec {
    /// bincode 2 in its standard configuration: small and fast, for types that need no
    /// description of themselves.
    #[default]
    Bincode,
    /// JSON, for types that serde describes by their form (untagged enums, skipped fields,
    /// `serde_json::Value`) and for peers in other languages.
    #[cfg(feature = "json")]
    Json,
}

impl Codec {
    /// Returns the number that stands for the codec on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Bincode => 0,
            #[cfg(feature = "json")]
            Self::Json => 1,
        }
    }

    /// Returns the codec of a number; fails with [`Protocol`](ErrorKind::Protocol) if it is not
    /// known here.
    pub fn from_id(id: u8) -> Result<Self> {
        let known = Self::ALL.iter().find(|codec| codec.id() == id);
        known
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::Protocol, format!("codec {id} is not known here")))
    }

    /// Encodes a message; fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if it is
    /// larger than [`MESSAGE_BYTES_MAX`] or cannot be serialised.
    pub fn encode<T: Serialize + 'static>(self, message: &T) -> Result<Bytes> {
        let mut encoder = Encoder::new(self);
        match encoder.encode_alone(message)? {
            Some(raw) => Ok(raw),
            None => Ok(encoder.message.into()),
        }
    }

    /// Decodes a message; fails with [`Protocol`](ErrorKind::Protocol) on bytes that are not
    /// exactly one `T`.
    pub fn decode<T: DeserializeOwned + 'static>(self, bytes: Bytes) -> Result<T> {
        let mut raw = Some(bytes);
        if let Some(same) = (&mut raw as &mut dyn Any).downcast_mut::<Option<T>>() {
            return same.take().ok_or_else(|| Error::internal("bytes were there"));
        }
        let bytes = raw.unwrap_or_default();
        let bad = || {
            let name = type_name::<T>();
            Error::new(ErrorKind::Protocol, format!("{} bytes are no {name}", bytes.len()))
        };
        match self {
            Self::Bincode => match bincode::serde::decode_from_slice(&bytes, CONFIG) {
                Ok((message, len)) if len == bytes.len() => Ok(message),
                Ok(_) => Err(bad()),
                Err(error) => Err(bad().with_source(error)),
            },
            #[cfg(feature = "json")]
            Self::Json => serde_json::from_slice(&bytes).map_err(|error| bad().with_source(error)),
        }
    }

    /// All codecs that are known here, by their number.
    pub(crate) const ALL: &[Self] = &[
        Self::Bincode,
        #[cfg(feature = "json")]
        Self::Json,
    ];
}

/// Encodes the messages of one stream: small ones share their memory.
#[derive(Debug)]
pub struct Encoder {
    codec: Codec,
    /// The message that is being encoded.
    message: Vec<u8>,
    has_begun: bool,
    room: BytesMut,
}

impl Encoder {
    /// Encodes by `codec`.
    pub fn new(codec: Codec) -> Self {
        Self { codec, message: Vec::new(), has_begun: false, room: BytesMut::new() }
    }

    /// Encodes a message; fails like [`Codec::encode`].
    pub fn encode<T: Serialize + 'static>(&mut self, message: &T) -> Result<Bytes> {
        if let Some(raw) = self.encode_alone(message)? {
            return Ok(raw);
        }
        if self.message.len() > ROOM / 2 {
            return Ok(std::mem::take(&mut self.message).into());
        }
        // The first message may be the only one.
        if !std::mem::replace(&mut self.has_begun, true) {
            return Ok(Bytes::copy_from_slice(&self.message));
        }
        if self.room.capacity() < self.message.len() {
            self.room = BytesMut::with_capacity(ROOM);
        }
        self.room.extend_from_slice(&self.message);
        Ok(self.room.split().freeze())
    }

    /// Encodes a message into `self.message`, or returns it if it is bytes already.
    fn encode_alone<T: Serialize + 'static>(&mut self, message: &T) -> Result<Option<Bytes>> {
        if let Some(raw) = (message as &dyn Any).downcast_ref::<Bytes>() {
            return check_size(raw).map(|()| Some(raw.clone()));
        }
        let bad = || Error::invalid(format!("{} does not encode", type_name::<T>()));
        self.message.clear();
        // A vector takes single bytes quicker than shared memory does.
        let out = &mut self.message;
        match self.codec {
            Codec::Bincode => {
                let encoded = bincode::serde::encode_into_std_write(message, out, CONFIG);
                encoded.map_err(|error| bad().with_source(error))?;
            }
            #[cfg(feature = "json")]
            Codec::Json => {
                serde_json::to_writer(out, message).map_err(|error| bad().with_source(error))?;
            }
        }
        check_size(&self.message).map(|()| None)
    }
}

/// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if a message is larger than
/// [`MESSAGE_BYTES_MAX`].
pub(super) fn check_size(message: &[u8]) -> Result<()> {
    let len = message.len();
    if len > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format!("message of {len} bytes, at most {MESSAGE_BYTES_MAX}")));
    }
    Ok(())
}

/// What the small messages of a stream are allocated by: about a hundred tokens.
const ROOM: usize = 1024;

/// The largest message: a prompt of a few million tokens.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{
        BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, HandoffReport,
        HandoffTicket, LoadedTokens, Sampling, Usage,
    };

    const BINCODE: Codec = Codec::Bincode;

    #[test]
    fn messages_survive_the_way() {
        let namespace = CacheNamespace::model("m");
        let prompt: Vec<u32> = (0..100).collect();
        let request =
            GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default());
        let chunk = GenerateChunk { token_ids: vec![49_151], ..GenerateChunk::default() };
        let last = GenerateChunk { finish: Some(FinishReason::Stop), ..chunk.clone() };
        for codec in Codec::ALL.iter().copied() {
            assert_eq!(Codec::from_id(codec.id()).unwrap(), codec);
            let bytes = codec.encode(&request).unwrap();
            assert_eq!(codec.decode::<GenerateRequest>(bytes).unwrap(), request);
            for chunk in [&chunk, &last] {
                let bytes = codec.encode(chunk).unwrap();
                assert_eq!(codec.decode::<GenerateChunk>(bytes).unwrap(), *chunk);
            }
        }
        assert_eq!(Codec::from_id(200).unwrap_err().kind(), ErrorKind::Protocol);
    }

    #[test]
    fn the_default_messages_do_not_change_unseen() {
        let namespace = CacheNamespace::model("m");
        let sampling =
            Sampling { max_tokens: 300, seed: 7, stop_token_ids: vec![2], ..Sampling::default() };
        let prompt = vec![5, 251, 70_000];
        let request = GenerateRequest::new(namespace, BlockSize::new(2).unwrap(), prompt, sampling);
        let hash = b"\xfd\x70\x2f\x37\x2b\x11\xcf\xe4\x08";
        let golden = [
            // The prompt; blocks of two tokens, of which the only one is hashed twice.
            &b"\x03\x05\xfb\xfb\x00\xfc\x70\x11\x01\x00\x02\x01"[..],
            hash,
            b"\x01",
            hash,
            // The cache's tenant, model, adapter and extra.
            b"\x00\x01m\x00\x00",
            // 300 tokens, temperature 0, top_p 1, seed 7, stop at 2 or the end; all of the work.
            b"\xfb\x2c\x01\0\0\0\0\0\0\x80\x3f\x07\x01\x02\x00\x00",
        ]
        .concat();
        assert_eq!(BINCODE.encode(&request).unwrap()[..], golden[..]);
        assert_eq!(BINCODE.decode::<GenerateRequest>(golden.into()).unwrap(), request);
        let ticket = HandoffTicket::new(&b"t"[..]);
        let loaded = LoadedTokens { disk: 1, remote: 0 };
        let usage =
            Usage { prompt_tokens: 3, cached_tokens: Some(2), completion_tokens: 1, loaded };
        let handoff = HandoffReport { blocks_pulled: 1, blocks_cached: 2, bytes: 4096, micros: 9 };
        let chunk = GenerateChunk {
            token_ids: vec![49_151],
            finish: Some(FinishReason::Length),
            usage: Some(usage),
            ticket: Some(ticket),
            handoff: Some(handoff),
        };
        let golden =
            b"\x01\xfb\xff\xbf\x01\x01\x01\x03\x01\x02\x01\x01\x00\x01\x01t\x01\x01\x02\xfb\x00\x10\x09";
        assert_eq!(BINCODE.encode(&chunk).unwrap()[..], golden[..]);
        assert_eq!(BINCODE.decode::<GenerateChunk>(Bytes::from_static(golden)).unwrap(), chunk);
    }

    #[test]
    fn a_token_is_small() {
        let chunk = GenerateChunk { token_ids: vec![49_151], ..GenerateChunk::default() };
        let len = BINCODE.encode(&chunk).unwrap().len() + super::super::frame::HEADER_BYTES;
        assert!(len <= 16, "a token takes {len} bytes on the wire");
    }

    #[test]
    fn bytes_cross_as_they_are_without_a_copy() {
        let bytes = Bytes::from(vec![7; 1000]);
        for codec in Codec::ALL.iter().copied() {
            let encoded = codec.encode(&bytes).unwrap();
            let decoded: Bytes = codec.decode(encoded).unwrap();
            assert_eq!((decoded.as_ptr(), decoded.len()), (bytes.as_ptr(), bytes.len()));
        }
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_carries_what_only_its_form_describes() {
        let value = serde_json::json!({ "model": "m", "stop": ["a", 1, null] });
        let bytes = Codec::Json.encode(&value).unwrap();
        assert_eq!(Codec::Json.decode::<serde_json::Value>(bytes).unwrap(), value);
        assert!(BINCODE.decode::<serde_json::Value>(BINCODE.encode(&value).unwrap()).is_err());
        let cut = Bytes::from_static(b"{\"model\": ");
        assert!(Codec::Json.decode::<serde_json::Value>(cut).is_err());
    }

    #[test]
    fn what_is_cut_longer_or_too_large_is_refused() {
        let bytes = BINCODE.encode(&("text".to_owned(), 7u64)).unwrap();
        for at in 0..bytes.len() {
            let error = BINCODE.decode::<(String, u64)>(bytes.slice(..at)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(BINCODE.decode::<(String, u64)>(longer).is_err());
        // A length that is announced is not allocated.
        let announced = Bytes::from_static(&[253, 255, 255, 255, 255, 255, 255, 255, 127]);
        assert!(BINCODE.decode::<Vec<u64>>(announced).is_err());
        let large = vec![0u8; MESSAGE_BYTES_MAX + 1];
        assert_eq!(BINCODE.encode(&large).unwrap_err().kind(), ErrorKind::InvalidArgument);
        let raw = Bytes::from(large);
        assert_eq!(BINCODE.encode(&raw).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            for codec in Codec::ALL.iter().copied() {
                let _ = codec.decode::<GenerateRequest>(bytes.clone());
                let _ = codec.decode::<GenerateChunk>(bytes.clone());
            }
        }
    }
}
