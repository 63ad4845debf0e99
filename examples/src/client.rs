//! A minimal HTTP client for servers on loopback: one request a connection, the answer as it
//! streams in.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// What one chat completion answered.
#[derive(Debug)]
pub struct Answer {
    /// The id of the request inside the graph.
    pub request: String,
    /// The text, whole.
    pub text: String,
}

/// Sends `messages` and passes each piece of text on as it arrives.
///
/// Fails if the server refuses, and if the answer breaks off.
pub async fn chat(
    server: SocketAddr,
    model: &str,
    messages: &[Value],
    max_tokens: u32,
    mut on_text: impl FnMut(&str),
) -> Result<Answer> {
    let body = json!({
        "model": model, "messages": messages, "max_tokens": max_tokens,
        "temperature": 0, "stream": true,
    });
    let stream = send(server, "POST", "/v1/chat/completions", Some(&body)).await?;
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
        let text = event["choices"][0]["delta"]["content"].as_str();
        // What says who speaks has no text.
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            on_text(text);
            answer.text.push_str(text);
        }
    }
    if !done {
        bail!("{status}: the stream ended without [DONE]");
    }
    Ok(answer)
}

/// Sends one request and returns the body of its answer; a status that is not 2xx is an error.
pub async fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<String> {
    let mut stream = send(server, method, path, body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("reading the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        bail!("{method} {path}: {status}: {body}");
    }
    Ok(body.to_owned())
}

/// Connects and writes a request.
async fn send(
    server: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("no {server}"))?;
    let mut stream = BufReader::new(stream);
    let body = body.map(Value::to_string).unwrap_or_default();
    // HTTP/1.0 keeps the client small: the body is not chunked and ends with the connection.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream)
}
