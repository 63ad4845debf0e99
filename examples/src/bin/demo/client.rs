//! A minimal HTTP client of the demo's own server: one request, the answer as it streams in.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What one chat completion answered.
pub(crate) struct Answer {
    /// The id of the request inside the graph.
    pub(crate) request: String,
    pub(crate) text: String,
}

/// Sends `messages` and passes each piece of text on as it arrives.
pub(crate) async fn chat(
    server: SocketAddr,
    model: &str,
    messages: &[Value],
    max_tokens: u32,
    mut on_text: impl FnMut(&str),
) -> Result<Answer> {
    let body = json!({
        "model": model, "messages": messages, "max_tokens": max_tokens,
        "temperature": 0, "stream": true,
    })
    .to_string();
    let stream = TcpStream::connect(server).await.context("connecting to the front end")?;
    let mut stream = BufReader::new(stream);
    // HTTP/1.0 keeps the client small: the body is not chunked and ends with the connection.
    let head = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nHost: {server}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;

    let mut lines = stream.lines();
    let status = lines.next_line().await?.context("the front end closed the connection")?;
    let mut answer = Answer { request: String::new(), text: String::new() };
    let mut done = false;
    while let Some(line) = lines.next_line().await? {
        let Some(event) = line.strip_prefix("data: ") else {
            if line.starts_with('{') {
                bail!("{status}: {line}");
            }
            continue;
        };
        if event == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(event).context("a server-sent event")?;
        if let Some(error) = event.get("error") {
            bail!("the answer broke off: {error}");
        }
        if let Some(id) = event["id"].as_str() {
            answer.request = id.trim_start_matches("chatcmpl-").to_owned();
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            on_text(text);
            answer.text.push_str(text);
        }
    }
    if !done {
        bail!("{status}: the stream ended without [DONE]");
    }
    Ok(answer)
}
