//! A process that a test starts, asks, freezes and kills.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use dynamo_transfer::{Agent, BackendKind, RemoteAgent};

use crate::agents::PATIENCE;
use crate::child::{Asked, from_hex, to_hex};
use crate::peer::AS_PEER;

/// This very program in another process; killed on drop.
pub(crate) struct Process(Asked);

impl Process {
    pub(crate) fn start() -> Self {
        Self::start_behind(&[])
    }

    /// Starts it as what another program starts.
    pub(crate) fn start_behind(before: &[&str]) -> Self {
        let args = ["peer::peer", "--exact", "--ignored", "--nocapture", "--skip", AS_PEER];
        Self(Asked::start(before, &args))
    }

    /// Starts it as an owner of one region; returns its metadata too.
    pub(crate) fn owner(backend: BackendKind) -> (Self, Vec<u8>) {
        let mut process = Self::start();
        let metadata = process.own(backend, "plain");
        (process, metadata)
    }

    /// Has it own a region of "plain" or "shared" memory; returns its metadata.
    pub(crate) fn own(&mut self, backend: BackendKind, memory: &str) -> Vec<u8> {
        from_hex(&self.ask(&format!("own {backend} {memory}")))
    }

    /// Has it own a region, and be reached over TCP at an address too; returns its metadata.
    pub(crate) fn own_at(&mut self, backend: BackendKind, address: SocketAddr) -> Vec<u8> {
        from_hex(&self.ask(&format!("own {backend} plain {address}")))
    }

    /// Says a line and returns the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.0.ask(line)
    }

    /// Has it write to the first region that `metadata` grants, again and again; returns when it does.
    pub(crate) fn write(&mut self, backend: BackendKind, metadata: &[u8]) {
        assert_eq!(self.ask(&format!("write {backend} {}", to_hex(metadata))), "writing");
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }

    /// Stops it, all of its threads.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
        let until = Instant::now() + PATIENCE;
        while !self.is_stopped() {
            assert!(Instant::now() < until, "the process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.0.process.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn is_stopped(&self) -> bool {
        let mut threads = std::fs::read_dir(format!("/proc/{}/task", self.0.process.id())).unwrap();
        threads.all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        })
    }
}

pub(crate) fn load(agent: &Agent, metadata: &[u8]) -> RemoteAgent {
    agent.load_metadata(metadata).unwrap()
}
