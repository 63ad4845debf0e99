//! A real etcd on loopback, with a folder of its own; ended by its pid.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Server {
    process: Child,
    folder: PathBuf,
    client_port: u16,
    peer_port: u16,
}

impl Server {
    /// Starts one, or says visibly how to get it.
    pub(crate) fn start() -> Option<Self> {
        let is_there = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
        if !is_there.is_ok_and(|status| status.success()) {
            // Past the capture of passing tests' output.
            let skipped = "SKIPPED: needs etcd; `apt-get install etcd-server`\n";
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return None;
        }
        loop {
            let (client_port, peer_port) = (free_port(), free_port());
            let folder = std::env::temp_dir().join(format!("dynamo-etcd-{client_port}"));
            let process = spawn(&folder, client_port, peer_port);
            let mut server = Self { process, folder, client_port, peer_port };
            if server.listens() {
                return Some(server);
            }
            // Somebody else has got one of the ports meanwhile.
        }
    }

    /// Waits until the process listens; tells whether it does, or has ended.
    fn listens(&mut self) -> bool {
        for _ in 0..6000 {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.address()).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        unreachable!("etcd listens within a minute");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.client_port))
    }

    /// Ends the process at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Loses everything that is stored; the process must not run.
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }

    /// Starts the process again, on the same port.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.folder, self.client_port, self.peer_port);
    }

    /// Freezes or thaws the process.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(folder: &PathBuf, client_port: u16, peer_port: u16) -> Child {
    let url = |port| format!("http://127.0.0.1:{port}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(folder)
        .args(["--listen-client-urls", &url(client_port)])
        .args(["--advertise-client-urls", &url(client_port)])
        .args(["--listen-peer-urls", &url(peer_port)])
        .args(["--initial-advertise-peer-urls", &url(peer_port)])
        .args(["--initial-cluster", &format!("default={}", url(peer_port))])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
