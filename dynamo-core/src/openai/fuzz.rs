//! What has to hold for any bytes that a server sends.

use bytes::Bytes;

use super::answer::{Reading, Said};
use super::gauges;
use super::sse::Events;
use super::tokens::TokenSource;
use crate::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling, TokenId};

/// However bytes are cut, the events in them are the same, and reading them ends.
///
/// # Panics
/// If not.
pub fn fuzz_sse(data: &[u8]) {
    let (cut, data) = data.split_first().map_or((0, data), |(cut, data)| (*cut, data));
    let whole = events([data]);
    assert_eq!(whole, events(data.chunks(usize::from(cut) + 1)));
    assert_eq!(whole, events(data.chunks(1)));
}

/// Events of any content are an answer whose last chunk is the only one, or an error.
///
/// # Panics
/// If not.
pub fn fuzz_completion(data: &[u8]) {
    for source in [TokenSource::TokenIds, TokenSource::Logprobs] {
        let sampling = Sampling { stop_token_ids: vec![5], ..Sampling::default() };
        let (namespace, prompt) = (CacheNamespace::default(), vec![7, 8, 9]);
        let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, sampling);
        let mut reading = Reading::new("http://host", source, &[END], &request);
        for event in events([data]) {
            match reading.take(&event) {
                Ok(Said::Tokens(_)) => {}
                Ok(Said::Done) => break,
                Err(_) => return,
            }
        }
        let is_finished = reading.is_finished();
        assert_eq!(is_finished, reading.end().is_ok_and(|last| last.finish.is_some()));
    }
}

/// A metrics page of any content tells the load of a bounded number of ranks.
///
/// # Panics
/// If not.
pub fn fuzz_metrics(data: &[u8]) {
    assert!(gauges::ranks(data, BlockSize::DEFAULT).len() <= gauges::RANKS_MAX);
}

/// Returns the events in `pieces`, up to one that is too long.
pub(super) fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let (mut events, mut found) = (Events::default(), Vec::new());
    for piece in pieces {
        events.push(Bytes::copy_from_slice(piece));
        loop {
            match events.next() {
                Ok(Some(event)) => found.push(event),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

const END: TokenId = 2;
