use proptest::prelude::*;

use super::*;

#[test]
fn messages_of_a_batch_stand_behind_their_lengths() {
    let messages = [vec![1; 3], Vec::new(), vec![2; 0x7f], vec![3; 0x80], vec![4; 1024]];
    let mut out = BytesMut::new();
    for message in &messages {
        let before = out.len();
        put_batched(&mut out, message);
        assert_eq!(Some(out.len() - before), batched_len(message));
    }
    assert_eq!(batched_len(&[0; 1025]), None);
    assert_eq!(&out[..5], [3, 1, 1, 1, 0]);
    assert_eq!(&out[5 + 1 + 0x7f..][..3], [0x80, 1, 3]);
    let mut batch = &out[..];
    for message in &messages {
        let len = take_batched(&mut batch).unwrap();
        assert_eq!(batch.split_off(..len).unwrap(), message);
    }
    assert!(batch.is_empty());
    for mut cut in [&[][..], &[0x80], &[2, 0]] {
        assert!(take_batched(&mut cut).is_err());
    }
}

#[test]
fn a_batch_has_one_form_and_no_message_that_crosses_alone() {
    let rest = [0; 1 << 15];
    for (len, taken) in [
        ([0x7f, 0], Some(0x7f)),
        ([0x80, 1], Some(0x80)),
        ([0x80, 8], Some(1024)),
        // One byte would do.
        ([0x80, 0], None),
        ([0xff, 0], None),
        // Beyond 1 KiB, and in a byte that says it goes on.
        ([0x81, 8], None),
        ([0xff, 0x7f], None),
        ([0x80, 0x81], None),
        ([0xff, 0xff], None),
    ] {
        let batch = [&len[..], &rest].concat();
        match (take_batched(&mut &batch[..]), taken) {
            (Ok(got), Some(taken)) => assert_eq!(got, taken, "{len:x?}"),
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::Protocol, "{len:x?}"),
            (got, _) => unreachable!("{len:x?}: {got:?}"),
        }
    }
}

#[test]
fn headers_and_payloads_survive_the_way() {
    for code in 0..12 {
        let kind = Kind::decode(code).unwrap();
        assert_eq!(kind as u8, code);
        let mut out = BytesMut::new();
        put(&mut out, kind, 0, 9, &[0; 3]);
        let header = Header { kind, flags: 0, stream: 9, len: 3 };
        assert_eq!(Header::decode(&out).unwrap(), Some(header));
        assert_eq!(Header::decode(&out[..7]).unwrap(), None);
    }
    for kind in ErrorKind::ALL {
        let error = decode_error(&encode_error(&Error::new(kind, "text"))).unwrap();
        assert_eq!((error.kind(), error.message(), error.is_retryable()), (kind, "text", false));
    }
    let later = Error::new(ErrorKind::Overloaded, "full")
        .unprocessed()
        .with_retry_after(Duration::from_millis(1500));
    let bytes = encode_error(&later);
    assert_eq!(&bytes[..], b"\x03\x03\xdc\x05\x00\x00full");
    let decoded = decode_error(&bytes).unwrap();
    assert!(decoded.is_retryable() && decoded.retry_after() == later.retry_after());
    assert!(decode_error(b"\x03\x04full").is_err() && decode_error(b"\x03\x02no").is_err());
    let long = Error::internal("ä".repeat(PAYLOAD_BYTES_MAX));
    assert!(encode_error(&long).len() <= PAYLOAD_BYTES_MAX);
}

#[test]
fn what_there_is_not_is_refused() {
    for bad in [
        [0, 0, 0, 12, 0, 0, 0, 0],
        [0, 0, 0, 0x33, 0, 0, 0, 0],
        [0, 0, 0, 0x21, 0, 0, 0, 0],
        [0, 0, 0, 0x43, 0, 0, 0, 0],
        [0, 0, 0, 0x14, 0, 0, 0, 0],
        [1, 0x40, 0, 3, 0, 0, 0, 0],
    ] {
        assert_eq!(Header::decode(&bad).unwrap_err().kind(), ErrorKind::Protocol, "{bad:?}");
    }
    let good =
        Hello { stream_window: 1, connection_window: 2, streams_max: 3, codec: Codec::Bincode }
            .encode();
    for at in 0..good.len() {
        assert!(Hello::decode(&good[..at]).is_err(), "cut at {at}");
    }
    assert!(Hello::decode(&[&good[..], &[0]].concat()).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Header::decode(&bytes);
        let _ = Hello::decode(&bytes);
        let _ = decode_error(&bytes);
    }
}
