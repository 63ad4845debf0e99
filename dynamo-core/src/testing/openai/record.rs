use std::sync::Arc;

use bytes::Bytes;
use hyper::http::request::Parts;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a client has asked a [`PlayedServer`](super::PlayedServer), and what became of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Asked {
    /// Its place in the order in which requests came, from 0.
    pub number: usize,
    /// `GET` or `POST`.
    pub method: String,
    /// The path, with what stands behind it.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body; `Null` if it is no JSON.
    pub body: Value,
    /// Tokens that were computed as the answer.
    pub tokens: usize,
    /// Blocks that it holds in the cache.
    pub blocks: usize,
    /// How far it is.
    pub state: AskedState,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AskedState {
    /// It waits until fewer requests are computed.
    Waiting,
    /// It is being answered.
    Running,
    /// All of its answer was sent, or it was refused.
    Answered,
    /// The server has closed the connection, as it was told.
    Cut,
    /// The client has closed the connection before it had the answer.
    Left,
}

impl Asked {
    /// Returns the value of a header; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(its, _)| its == name);
        header.map(|(_, value)| value.as_str())
    }
}

/// All that was asked, with whoever waits for it.
#[derive(Debug)]
pub(super) struct Records {
    asked: watch::Sender<Vec<Asked>>,
    /// Once the server ends, whoever is left without an answer was cut off.
    ending: CancellationToken,
}

impl Records {
    pub(super) fn new(ending: CancellationToken) -> Self {
        Self { asked: watch::Sender::new(Vec::new()), ending }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Vec<Asked>> {
        self.asked.subscribe()
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&[Asked]) -> T) -> T {
        read(&self.asked.borrow())
    }

    /// Writes down a request that waits for its turn.
    pub(super) fn write(self: &Arc<Self>, parts: &Parts, body: &Bytes) -> Record {
        let headers = parts.headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let mut asked = Asked {
            number: 0,
            method: parts.method.to_string(),
            path: parts.uri.to_string(),
            headers: headers.collect(),
            body: serde_json::from_slice(body).unwrap_or_default(),
            tokens: 0,
            blocks: 0,
            state: AskedState::Waiting,
        };
        let mut number = 0;
        self.asked.send_modify(|all| {
            number = all.last().map_or(0, |last| last.number + 1);
            asked.number = number;
            if all.len() >= ASKED_MAX {
                all.drain(..ASKED_MAX / 2);
            }
            all.push(asked);
        });
        Record { records: Arc::clone(self), number }
    }
}

/// One request of the records; one that is dropped before it was answered was left by its client.
#[derive(Debug)]
pub(super) struct Record {
    records: Arc<Records>,
    number: usize,
}

impl Record {
    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn set(&self, state: AskedState) {
        self.change(|asked| {
            asked.state = state;
            if !matches!(state, AskedState::Waiting | AskedState::Running) {
                asked.blocks = 0;
            }
        });
    }

    pub(super) fn holds(&self, tokens: usize, blocks: usize) {
        self.change(|asked| (asked.tokens, asked.blocks) = (tokens, blocks));
    }

    fn change(&self, change: impl FnOnce(&mut Asked)) {
        self.records.asked.send_modify(|all| {
            if let Ok(place) = all.binary_search_by_key(&self.number, |asked| asked.number) {
                change(&mut all[place]);
            }
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let is_cut = self.records.ending.is_cancelled();
        self.change(|asked| {
            if matches!(asked.state, AskedState::Waiting | AskedState::Running) {
                asked.state = if is_cut { AskedState::Cut } else { AskedState::Left };
                asked.blocks = 0;
            }
        });
    }
}

/// What a test asks is far fewer; the older half makes room.
const ASKED_MAX: usize = 16_384;
