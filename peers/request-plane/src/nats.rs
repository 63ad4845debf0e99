//! Request and reply over core NATS: a nats-server on loopback, 64 bytes there, 64 bytes back.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;

use crate::model::Ask;
use crate::turn::Subject;

/// A real NATS; ended by its pid.
pub struct Server {
    process: Child,
    url: String,
}

impl Server {
    pub fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = quiet.spawn().context("cannot start nats-server")?;
        Ok(Self { process, url: format!("nats://127.0.0.1:{port}") })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns a connection, which also waits until the server has come up.
    async fn client(&self) -> Result<Client> {
        let client = ConnectOptions::new().retry_on_initial_connect().connect(&self.url).await?;
        let flushed = tokio::time::timeout(Duration::from_secs(20), client.flush()).await;
        flushed.context("nats-server does not answer")??;
        Ok(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A caller and an answerer, a connection each.
pub struct Raw(Client);

pub async fn raw(server: &Server) -> Result<Raw> {
    let (caller, answerer) = (server.client().await?, server.client().await?);
    let mut requests = answerer.subscribe(SUBJECT).await?;
    // The server knows of it before anybody asks.
    answerer.flush().await?;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            if answerer.publish(reply, request.payload).await.is_err() {
                return;
            }
        }
    });
    Ok(Raw(caller))
}

impl Subject for Raw {
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            for _ in 0..ask.count {
                let reply = self.0.request(SUBJECT, Bytes::from_static(&[7; 64])).await?;
                ensure!(reply.payload.len() == 64, "an answer is not whole");
            }
            Ok(ask.count)
        })
    }
}

const SUBJECT: &str = "bench.llm.generate";
