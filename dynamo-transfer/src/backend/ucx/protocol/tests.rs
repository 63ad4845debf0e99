use proptest::prelude::*;

use super::*;
use crate::backend::ucx::header::KINDS;
use crate::error::ErrorKind;

fn hello() -> Hello {
    let (target_name, name) = ("a".into(), "b".into());
    let hello = wire::Hello { target_name, target_incarnation: 1, name, incarnation: 2 };
    Hello { hello, address: vec![7; 99] }
}

fn request() -> Request {
    let token = Token { generation: 2, is_writable: true, expires_ms: 4, proof: 3 };
    Request {
        right: Right::Write,
        way: Way::Rail(RailKind::Rdma),
        region: 1,
        token,
        ranges: Ranges::unchecked([(4, 5), (6, 7)]),
    }
}

#[test]
fn headers_survive_the_way_and_others_are_refused() {
    for kind in KINDS {
        let header = Header { position: 9, checksum: 10, ..Header::new(kind, 7, 8) };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }
    let mut bytes = Header::new(Kind::Done, 1, 2).encode();
    assert_eq!(Header::decode(&bytes[1..]), None);
    bytes[0] = u8::try_from(KINDS.len()).unwrap();
    assert_eq!(Header::decode(&bytes), None);
}

#[test]
fn bodies_survive_the_way_and_cut_ones_are_refused() {
    let bytes = hello().encode();
    assert_eq!(Hello::decode(&bytes).unwrap(), hello());
    for at in 0..bytes.len() {
        assert_eq!(Hello::decode(&bytes[..at]).unwrap_err().kind(), ErrorKind::Protocol);
    }
    let bytes = request().encode();
    assert!(Request::decode(&bytes).unwrap() == request());
    assert!(Request::decode(&bytes[..bytes.len() - 1]).is_err());
    let checked = Request { way: Way::Checked, ..request() };
    assert!(Request::decode(&checked.encode()).unwrap() == checked);
    let with = |len| Request { way: Way::Here(vec![9; len]), ..request() };
    let largest = with(HERE_BYTES_MAX);
    assert!(Request::decode(&largest.encode()).unwrap() == largest);
    assert!(Request::decode(&with(HERE_BYTES_MAX + 1).encode()).is_err());
    // Only what is written may come with its request.
    assert!(Request::decode(&Request { right: Right::Read, ..with(9) }.encode()).is_err());
    assert!(decode_status(&[0, 0]).is_err() && decode_status(&[]).is_err());
    let rails = Rails { host: vec![1, 2], cma: vec![3], rdma: Vec::new() };
    let welcome = Welcome { status: Err(protocol("no")), rails: rails.clone() };
    let welcome = Welcome::decode(&welcome.encode()).unwrap();
    assert_eq!((welcome.status.unwrap_err().message(), welcome.rails), ("no", rails));
}

#[test]
fn the_largest_grant_and_the_largest_request_fit_into_a_message() {
    let keys = vec![vec![0; KEY_BYTES_MAX]; SEGMENTS_MAX];
    let piece = |position| RemotePiece { position, address: 0, len: 1, key: 0 };
    let grants: Vec<_> = (0..GRANTS_MAX as u64).map(piece).collect();
    let body = encode_grants(&keys, &grants);
    assert_eq!(body.len(), CONTROL_BYTES_MAX);
    assert_eq!(decode_grants(&body, GRANTS_MAX as u64).unwrap().1, grants);
    let many = |count| Request { ranges: Ranges::unchecked(vec![(0, 1); count]), ..request() };
    let request = many(STRIPE_CHUNKS_MAX).encode();
    assert!(request.len() <= CONTROL_BYTES_MAX);
    let with_data = Request { way: Way::Here(vec![0; HERE_BYTES_MAX]), ..many(STRIPE_CHUNKS_MAX) };
    assert!(with_data.encode().len() <= CONTROL_BYTES_MAX);
    assert_eq!(Request::decode(&request).unwrap().ranges.count(), STRIPE_CHUNKS_MAX);
    assert!(Request::decode(&many(STRIPE_CHUNKS_MAX + 1).encode()).is_err());
}

#[test]
fn grants_follow_each_other_and_cover_the_operation() {
    let grant = |position, key| RemotePiece { position, address: 4096, len: 8, key };
    let encode = |grants: &[RemotePiece]| encode_grants(&[vec![1], vec![2, 3]], grants);
    let good = [grant(0, 1), grant(8, 0)];
    let (keys, grants) = decode_grants(&encode(&good), 16).unwrap();
    assert_eq!((keys, &grants[..]), (vec![vec![1], vec![2, 3]], &good[..]));
    for (bad, total) in [
        (vec![grant(0, 1), grant(8, 0)], 17),
        (vec![grant(0, 1), grant(9, 0)], 17),
        (vec![grant(0, 1), grant(8, 2)], 16),
        (vec![grant(8, 0)], 8),
    ] {
        assert!(decode_grants(&encode(&bad), total).is_err());
    }
}

proptest! {
    #[test]
    fn whatever_is_taken_of_any_bytes_is_written_the_same_again(
        kind in 0u8..7,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        fuzz(&[&[kind], &bytes[..]].concat());
        let mut hello = hello().encode();
        hello.truncate(8);
        hello.extend(&bytes);
        fuzz(&[&[1], &hello[..]].concat());
    }
}
