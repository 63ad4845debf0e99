use super::*;

const FORMAT: Format = Format { magic: *b"TEST", version: 3 };

#[test]
fn a_hello_survives_the_way_and_one_that_is_cut_or_of_another_format_is_refused() {
    let (target_name, name) = ("a".repeat(NAME_BYTES_MAX), "ä".to_owned());
    let hello = Hello { target_name, target_incarnation: 1, name, incarnation: u64::MAX };
    let mut bytes = Vec::new();
    hello.put(&FORMAT, &mut bytes);
    let take = |bytes: &[u8]| Hello::take(&FORMAT, &mut Reader::new(bytes));
    assert_eq!(take(&bytes).unwrap(), hello);
    for at in 0..bytes.len() {
        assert_eq!(take(&bytes[..at]).unwrap_err().kind(), ErrorKind::Protocol);
    }
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x80;
        take(&bytes).unwrap_err().to_string()
    };
    assert_eq!(flipped(0), "no magic of TEST");
    assert_eq!(flipped(4), "format of version 131, this is 3");
    assert_eq!(flipped(7), "field of 33023 bytes, at most 255");
    assert_eq!(flipped(8), "agent name is not UTF-8");
}

#[test]
fn statuses_keep_their_kind_unless_it_is_of_the_peer_and_lose_the_end_of_long_reasons() {
    let again = |status: &Result<()>| {
        let mut out = Vec::new();
        put_status(&mut out, status);
        Reader::new(&out).status().unwrap()
    };
    assert!(again(&Ok(())).is_ok());
    for (index, kind) in KINDS.into_iter().enumerate() {
        let error = again(&Err(Error::new(kind, "text"))).unwrap_err();
        let told = match kind {
            // The peer is, and not this agent.
            ErrorKind::Closed | ErrorKind::Cancelled => ErrorKind::Disconnected,
            kind => kind,
        };
        assert_eq!((error.kind(), error.message()), (told, "text"));
        assert_eq!(KINDS.iter().position(|other| *other == kind), Some(index));
    }
    assert_eq!(kind(u8::MAX), Some(ErrorKind::Internal));
    let long = Error::new(ErrorKind::Io, "ä".repeat(REASON_BYTES_MAX));
    assert_eq!(again(&Err(long)).unwrap_err().message().len(), REASON_BYTES_MAX);
    assert_eq!(Reader::new(&[]).status().unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn nothing_is_read_beyond_the_end() {
    let mut reader = Reader::new(&[1, 2, 3]);
    assert!(reader.clone().u32().is_err() && reader.clone().bytes(9).is_err());
    assert!(reader.take(4).is_err() && reader.end().is_err());
    assert!(reader.flag().unwrap() && reader.flag().is_err());
    assert_eq!((reader.rest(), reader.len()), (&[3][..], 0));
    assert!(reader.end().is_ok() && reader.u8().is_err());
    let long = vec![0; NOTIFICATION_BYTES_MAX + 1];
    assert!(Reader::new(&long).notification().is_err());
    assert_eq!(Reader::new(&long[1..]).notification().unwrap().len(), NOTIFICATION_BYTES_MAX);
}
