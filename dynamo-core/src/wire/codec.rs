//! Messages as bytes: bincode 2 through serde, with a limit on what decoding may allocate.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Encodes a message; fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if it is larger
/// than [`MESSAGE_BYTES_MAX`] or cannot be serialised.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes> {
    Encoder::default().encode(message)
}

/// Encodes the messages of one stream: small ones share their memory.
#[derive(Debug, Default)]
pub struct Encoder(BytesMut);

impl Encoder {
    /// Encodes a message; fails like [`encode`].
    pub fn encode<T: Serialize>(&mut self, message: &T) -> Result<Bytes> {
        let mut writer = (&mut self.0).writer();
        let encoded = bincode::serde::encode_into_std_write(message, &mut writer, CONFIG);
        let bytes = self.0.split().freeze();
        encoded.map_err(|error| {
            let name = std::any::type_name::<T>();
            Error::invalid(format!("{name} does not encode")).with_source(error)
        })?;
        check_size(&bytes)?;
        if self.0.capacity() < ROOM_MIN {
            self.0 = BytesMut::with_capacity(ROOM);
        }
        Ok(bytes)
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

/// Decodes a message; fails with [`Protocol`](ErrorKind::Protocol) on bytes that are not exactly
/// one `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bad = || {
        let name = std::any::type_name::<T>();
        Error::new(ErrorKind::Protocol, format!("{} bytes are no {name}", bytes.len()))
    };
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((message, len)) if len == bytes.len() => Ok(message),
        Ok(_) => Err(bad()),
        Err(error) => Err(bad().with_source(error)),
    }
}

/// What the small messages of a stream are allocated by, and when anew: about a hundred tokens.
const ROOM: usize = 1024;
const ROOM_MIN: usize = 32;

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
        BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling,
    };

    #[test]
    fn messages_survive_the_way_and_a_token_is_small() {
        let namespace = CacheNamespace::model("m");
        let prompt: Vec<u32> = (0..100).collect();
        let request =
            GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default());
        assert_eq!(decode::<GenerateRequest>(&encode(&request).unwrap()).unwrap(), request);
        let chunk = GenerateChunk { token_ids: vec![49_151], ..GenerateChunk::default() };
        let bytes = encode(&chunk).unwrap();
        assert_eq!(decode::<GenerateChunk>(&bytes).unwrap(), chunk);
        let len = bytes.len() + super::super::frame::HEADER_BYTES;
        assert!(len <= 16, "a token takes {len} bytes on the wire");
        let last = GenerateChunk { finish: Some(FinishReason::Stop), ..chunk };
        assert_eq!(decode::<GenerateChunk>(&encode(&last).unwrap()).unwrap(), last);
    }

    #[test]
    fn what_is_cut_longer_or_too_large_is_refused() {
        let bytes = encode(&("text", 7u64)).unwrap();
        for at in 0..bytes.len() {
            let error = decode::<(String, u64)>(&bytes[..at]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode::<(String, u64)>(&longer).unwrap_err().kind(), ErrorKind::Protocol);
        // A length that is announced is not allocated.
        let announced = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(decode::<Vec<u64>>(&announced).is_err());
        let large = vec![0u8; MESSAGE_BYTES_MAX + 1];
        assert_eq!(encode(&large).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<GenerateRequest>(&bytes);
            let _ = decode::<GenerateChunk>(&bytes);
        }
    }
}
