//! The binary, beside etcd and NATS: it finds a worker of another process, answers, says so, and ends.
#![cfg(feature = "processes")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dynamo_examples::planes;
use dynamo_examples::servers::Servers;
use folder::Folder;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use worker::{Deaths, Worker};

#[path = "support/folder.rs"]
mod folder;
#[path = "support/worker.rs"]
#[expect(dead_code, reason = "no worker dies here")]
mod worker;

const PATIENCE: Duration = Duration::from_secs(60);

async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_what_it_finds_says_a_line_of_each_request_and_ends_when_it_is_told_to() {
    let servers = Servers::start().unwrap();
    let folder = Folder::of_bytes();
    let runtime = bounded(planes::runtime(servers.etcd(), servers.nats(), planes::on_loopback()))
        .await
        .unwrap();
    let worker = Worker::start(&runtime, "fleet", "worker-0", &Arc::new(Deaths::none())).await;

    let mut front_end = Command::new(env!("CARGO_BIN_EXE_front_end"));
    front_end.args(["--etcd", servers.etcd(), "--nats", servers.nats(), "--model", "m"]);
    front_end.args(["--component", "demo/fleet", "--listen", "127.0.0.1:0"]);
    front_end.args(["--router", "kv", "--block-size", "16", "--model-dir"]).arg(folder.path());
    let mut front_end = front_end.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(front_end.stdout.take().unwrap()).lines();
    let ready = bounded(lines.next_line()).await.unwrap().unwrap();
    let address = ready.strip_prefix("ready http://").unwrap();

    let body =
        json!({ "model": "m", "prompt": "Tell me of the sea.", "max_tokens": 9 }).to_string();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.0\r\nContent-Length:";
    let asked = format!("{head} {}\r\n\r\n{body}", body.len());
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::new();
    bounded(stream.read_to_string(&mut answer)).await.unwrap();
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 9, "{answer}");

    let line = bounded(lines.next_line()).await.unwrap().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["worker"], &line["finish"]), (&json!("worker-0"), &json!("length")));
    assert!(answer["id"].as_str().unwrap().ends_with(line["id"].as_str().unwrap()), "{line}");
    // The token that starts a sequence is one more.
    assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&json!(20), &json!(9)));

    let id = front_end.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let ended = bounded(front_end.wait()).await.unwrap();
    assert!(ended.success(), "{ended}");
    drop(worker);
    runtime.shutdown(PATIENCE).await.unwrap();
    servers.end().await.unwrap();
}
