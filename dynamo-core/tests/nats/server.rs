//! A real NATS on loopback; ended by its pid.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) struct Server {
    process: Child,
    port: u16,
    /// With the config file and what it names.
    folder: PathBuf,
}

impl Server {
    /// Starts one, or says visibly how to get it.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(|_| String::new())
    }

    /// Starts one with the config that `config` makes, and files in the folder it is given.
    pub(crate) fn start_with(config: impl FnOnce(&Path) -> String) -> Option<Self> {
        let is_there = Command::new("nats-server").arg("--version").stdout(Stdio::null()).status();
        if !is_there.is_ok_and(|status| status.success()) {
            // Past the capture of passing tests' output.
            let skipped = "SKIPPED: needs NATS; `apt-get install nats-server`\n";
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return None;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = std::env::temp_dir().join(format!("dynamo-nats-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(CONFIG), config(&folder)).unwrap();
        Some(Self { process: spawn(&folder, port), port, folder })
    }

    /// Ends the process at once.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the process again, on the same port.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.folder, self.port);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
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

fn spawn(folder: &Path, port: u16) -> Child {
    Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"])
        .arg(folder.join(CONFIG))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

const CONFIG: &str = "nats.conf";
