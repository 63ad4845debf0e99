//! A prompt prefilled by one server and decoded by another, in vLLM's words.
//!
//! ```text
//!  Stage::Prefill   max_tokens 1, kv_transfer_params: what is asked for       ─► prefill server
//!                   first token, kv_transfer_params: where the blocks are     ◄─
//!                   these, in a ticket; the stream is open while the blocks are kept
//!  Stage::Decode    the same prompt, kv_transfer_params: those of the ticket  ─► decode server
//!                   pulls the blocks; first token again, and what follows     ◄─
//! ```
//!
//! Facts that this rests on, of vLLM 0.32 with its `NixlConnector`:
//! - Only an answer that is not streamed has `kv_transfer_params`, so a prefill asks for one.
//! - The decode server is asked with the prompt as it was prefilled. It pulls the blocks, computes
//!   the last token of the prompt anew and samples the first token again, which is taken off
//!   ([`take_first`]). A prompt with the first token appended needs a block more than was kept
//!   where the prompt fills its last block, and a decode server that is asked so exits.
//! - Blocks are freed when they were pulled or a lease ends that nobody but a decode server renews,
//!   and a decode server pulls whatever lies there afterwards, without an error. Hence [`hold`].
//!
//! The server trusts what is in the parameters, as it trusts who sends them: tickets are made by
//! servers and never taken from a client.

use std::fmt::Display;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::answer::{Reading, Said};
use crate::engine::{Context, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{FinishReason, GenerateChunk, HandoffTicket, TokenId};

/// Returns what asks a server to keep a prompt's blocks for another one.
pub(super) fn prefill_params() -> Value {
    json!({ "do_remote_decode": true, "do_remote_prefill": false })
}

/// Wraps what a prefill server says of the blocks that it keeps.
///
/// Fails with [`Internal`](ErrorKind::Internal) if it keeps none or says so in words that no decode
/// server would understand: it then has no connector, or another one, which is a fault of the fleet.
fn ticket(params: &Value) -> Result<HandoffTicket> {
    if params.is_null() {
        let message = "server prefilled without kv_transfer_params: it has no connector to others";
        return Err(Error::internal(message));
    }
    understood(params).map_err(|what| Error::internal(format!("kv_transfer_params {what}")))?;
    let body = params.to_string();
    if body.len() > BYTES_MAX {
        let message = format!("kv_transfer_params have {} bytes of {BYTES_MAX}", body.len());
        return Err(Error::internal(message));
    }
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    bytes.put_slice(&MARK);
    bytes.put_u64_le(xxh3_64(body.as_bytes()));
    bytes.put_slice(body.as_bytes());
    Ok(HandoffTicket::new(bytes.freeze()))
}

/// Returns the parameters in a ticket, for a decode server.
///
/// Fails with [`Protocol`](ErrorKind::Protocol) if the ticket is not one of [`ticket`].
pub(super) fn params(ticket: &HandoffTicket) -> Result<Value> {
    let Some((mark, rest)) = ticket.as_bytes().split_first_chunk::<{ MARK.len() }>() else {
        return Err(bad("is cut short"));
    };
    if *mark != MARK {
        return Err(bad("is not of an OpenAI-compatible server, or of another version"));
    }
    let Some((digest, body)) = rest.split_first_chunk() else { return Err(bad("is cut short")) };
    if body.len() > BYTES_MAX {
        return Err(bad(format_args!("has {} bytes of {BYTES_MAX}", body.len())));
    }
    if u64::from_le_bytes(*digest) != xxh3_64(body) {
        return Err(bad("fails its digest"));
    }
    let params =
        serde_json::from_slice(body).map_err(|error| bad("is no JSON").with_source(error))?;
    understood(&params).map_err(bad)?;
    Ok(params)
}

/// Takes the token that the prefill server has sampled off the first tokens of the decode server.
///
/// Fails with [`Conflict`](ErrorKind::Conflict) if that has sampled another one: what follows does
/// then not continue what the client has.
pub(super) fn take_first(first_token: TokenId, tokens: &mut Vec<TokenId>) -> Result<()> {
    match tokens.first() {
        Some(token) if *token == first_token => {
            tokens.remove(0);
            Ok(())
        }
        token => {
            let message = format!("decode server began with {token:?} instead of {first_token:?}");
            Err(Error::new(ErrorKind::Conflict, message))
        }
    }
}

/// Returns what a prefill server has answered, all of it: the first token, and a ticket unless the
/// answer is over with it.
///
/// Fails as [`Reading::take`], [`Reading::end`] and [`ticket`] do.
pub(super) fn prefilled(
    reading: &mut Reading,
    body: &[u8],
    max_tokens: u32,
) -> Result<GenerateChunk> {
    let mut token_ids = match reading.take(body)? {
        Said::Tokens(token_ids) => token_ids,
        Said::Done => Vec::new(),
    };
    let mut chunk = reading.end()?;
    token_ids.append(&mut chunk.token_ids);
    chunk.token_ids = token_ids;
    if chunk.finish == Some(FinishReason::Length) && max_tokens > 1 {
        // Read as an answer above, so it can be read.
        let Kept { kv_transfer_params } = serde_json::from_slice(body).unwrap_or_default();
        (chunk.finish, chunk.ticket) = (None, Some(ticket(&kv_transfer_params)?));
    }
    Ok(chunk)
}

#[derive(Default, Deserialize)]
struct Kept {
    #[serde(default)]
    kv_transfer_params: Value,
}

/// Returns the stream of a prefill: with a ticket it is open behind it for as long as the server
/// keeps the blocks, and then fails.
pub(super) fn held(
    ctx: &Context,
    chunk: GenerateChunk,
    hold_max: Duration,
) -> ResponseStream<GenerateChunk> {
    let hold = chunk.ticket.is_some().then(|| hold(hold_max));
    let chunks = stream::iter([Ok(chunk)]);
    ResponseStream::new(ctx, chunks.chain(stream::iter(hold).flatten()))
}

/// Returns what it means that a decode server fails before its first token: that it has not got the
/// blocks, of which it says no more than that something went wrong.
pub(super) fn not_pulled(error: Error) -> Error {
    if error.kind() != ErrorKind::Internal {
        return error;
    }
    Error::new(ErrorKind::NotFound, "decode server could not take the blocks").with_source(error)
}

/// Returns what is left of a stream while a server keeps blocks: nothing for `kept`, counted from
/// now, and then an error.
///
/// A decode server cannot tell that the blocks at an address are others by now, so a hand-off has
/// to be given up by whoever holds this.
fn hold(kept: Duration) -> impl Stream<Item = Result<GenerateChunk>> + Send + 'static {
    // Begun here: whoever reads late has no more time, and is told at once.
    let over = tokio::time::sleep(kept);
    stream::once(async move {
        if Instant::now() < over.deadline() {
            over.await;
        }
        let message = format!("prefill server keeps blocks for no more than {kept:?}");
        Err(Error::new(ErrorKind::NotFound, message))
    })
}

/// Checks that a decode server will find in `params` what it takes for granted.
fn understood(params: &Value) -> Result<(), String> {
    let is_text = |name: &str| params[name].as_str().is_some_and(|text| !text.is_empty());
    for name in ["remote_engine_id", "remote_request_id", "remote_host"] {
        if !is_text(name) {
            return Err(format!("have no {name}"));
        }
    }
    if params["remote_port"].as_u64().is_none_or(|port| u16::try_from(port).is_err()) {
        return Err("have no remote_port".into());
    }
    if params["do_remote_prefill"] != true {
        return Err("do not say do_remote_prefill".into());
    }
    // A server that pushes is asked after the decode server, not before it.
    if params.get("transfer_mode").is_some_and(|mode| mode != "pull") {
        return Err(format!("are for transfer mode {}", params["transfer_mode"]));
    }
    // Per group of layers; older servers have one group and say so without a list around it.
    let groups = params["remote_block_ids"].as_array();
    let is_id = |id: &Value| id.as_u64().is_some_and(|id| u32::try_from(id).is_ok());
    let are_ids = |ids: &Value| match ids {
        Value::Array(ids) => ids.iter().all(is_id),
        id => is_id(id),
    };
    if !groups.is_some_and(|groups| !groups.is_empty() && groups.iter().all(are_ids)) {
        return Err("have no remote_block_ids".into());
    }
    Ok(())
}

fn bad(what: impl Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("hand-off ticket {what}"))
}

/// What a ticket begins with: whose it is, and a version.
const MARK: [u8; 4] = *b"vkt\x01";

/// The mark and a digest: XXH3-64 of the JSON behind it, against accidents.
const HEADER_BYTES: usize = MARK.len() + size_of::<u64>();

/// The ids of 100,000 blocks: a prompt of more than a million tokens.
const BYTES_MAX: usize = 1 << 20;

/// A million tokens that are said back, and the parameters.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
pub(super) mod tests;
