//! etcd and NATS as child processes on loopback: free ports, a folder of their own, gone at the end.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

/// An etcd and a nats-server; dropping it kills them and removes what they have written.
#[derive(Debug)]
pub struct Servers {
    etcd: String,
    nats: String,
    children: Vec<Child>,
    folder: PathBuf,
}

impl Servers {
    /// Starts both; they answer soon after, which clients wait for.
    ///
    /// Fails if one of the programs is not installed; the message says how to get it.
    pub fn start() -> Result<Self> {
        let (client, peer, nats) = (free_port()?, free_port()?, free_port()?);
        let folder = std::env::temp_dir().join(format!("dynamo-servers-{client}"));
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(&folder);
        etcd.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        etcd.args(["--listen-peer-urls", &url(peer)]);
        etcd.args(["--initial-advertise-peer-urls", &url(peer)]);
        etcd.args(["--initial-cluster", &format!("default={}", url(peer))]);
        let mut server = Command::new("nats-server");
        server.args(["-a", "127.0.0.1", "-p", &nats.to_string()]);
        let (etcd_url, nats_url) = (url(client), format!("nats://127.0.0.1:{nats}"));
        let children = Vec::new();
        let mut servers = Self { etcd: etcd_url, nats: nats_url, children, folder };
        for (mut command, package) in [(etcd, "etcd-server"), (server, "nats-server")] {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let started = command.kill_on_drop(true).spawn();
            servers.children.push(started.with_context(|| {
                let program = command.as_std().get_program().display();
                format!("cannot start {program}; on Debian, `apt-get install {package}` brings it")
            })?);
        }
        Ok(servers)
    }

    /// Returns where etcd answers.
    pub fn etcd(&self) -> &str {
        &self.etcd
    }

    /// Returns where NATS answers.
    pub fn nats(&self) -> &str {
        &self.nats
    }

    /// Ends both, waits for them and removes what they have written.
    pub async fn end(mut self) -> Result<()> {
        for server in &mut self.children {
            server.kill().await.context("ending a server")?;
        }
        std::fs::remove_dir_all(&self.folder).context("removing the folder of etcd")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // After `end` there is nothing left of this to do, and it fails.
        for server in &mut self.children {
            let _ = server.start_kill();
        }
        // Who is killed may still write for a moment.
        let lives = |server: &mut Child| matches!(server.try_wait(), Ok(None));
        for _ in 0..LOOKS_MAX {
            if !self.children.iter_mut().any(lives) {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Returns a port of loopback that nobody listens on.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Two seconds of them.
const LOOKS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_them_removes_what_they_have_written() {
        let servers = Servers::start().unwrap();
        let folder = servers.folder.clone();
        let is_written = async {
            while !folder.join("member").exists() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is_written).await.unwrap();
        drop(servers);
        assert!(!folder.exists());
    }
}
