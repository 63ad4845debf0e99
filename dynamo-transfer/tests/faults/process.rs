//! A process that a test starts, asks, freezes and kills.

use std::io::{BufRead, BufReader, Lines, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dynamo_transfer::{Agent, BackendKind, RemoteAgent};

use crate::agents::PATIENCE;
use crate::peer::{ANSWER, AS_PEER};

/// This very program in another process; killed on drop.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start() -> Self {
        Self::start_behind(&[])
    }

    /// Starts it as what another program starts.
    pub(crate) fn start_behind(before: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = before.iter().map(Into::into).chain([program.into_os_string()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(["peer::peer", "--exact", "--ignored", "--nocapture", "--skip", AS_PEER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let input = child.stdin.take().unwrap();
        Self { child, input, output }
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
        writeln!(self.input, "{line}").unwrap();
        let mut said = self.output.by_ref().map_while(Result::ok);
        said.find_map(|line| line.strip_prefix(ANSWER).map(str::to_owned)).unwrap()
    }

    /// Has it write to the first region that `metadata` grants, again and again; returns when it does.
    pub(crate) fn write(&mut self, backend: BackendKind, metadata: &[u8]) {
        assert_eq!(self.ask(&format!("write {backend} {}", to_hex(metadata))), "writing");
    }

    pub(crate) fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn is_stopped(&self) -> bool {
        let mut threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn load(agent: &Agent, metadata: &[u8]) -> RemoteAgent {
    agent.load_metadata(metadata).unwrap()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    (0..hex.len() / 2).map(byte).collect()
}
