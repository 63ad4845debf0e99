//! This very program in another process, which a test kills.

use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Another process that runs one of the ignored tests; killed on drop.
pub(crate) struct Other {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts the test of that name, which finds the directory by [`directory`].
    pub(crate) fn start(role: &str, dir: &Path) -> Self {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let program = program
            .args([role, "--exact", "--ignored", "--nocapture"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = program.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// Waits until it has [told](tell) something so often; returns what.
    pub(crate) fn hear(&mut self, times: usize) -> Vec<String> {
        let told: Vec<_> = self.told().take(times).collect();
        assert_eq!(told.len(), times, "it has ended by itself");
        told
    }

    /// Ends it; returns what it had told that was not heard.
    pub(crate) fn kill(&mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.told().collect()
    }

    fn told(&mut self) -> impl Iterator<Item = String> {
        let lines = self.lines.by_ref().map_while(Result::ok);
        lines.filter_map(|line| Some(line.strip_suffix(WORD)?.to_owned()))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns where the other process works, if this is one.
#[expect(clippy::disallowed_methods, reason = "only the test that starts it tells it where")]
pub(crate) fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Tells the test that something was done, and what.
#[expect(clippy::print_stdout, reason = "processes of a test talk so")]
pub(crate) fn tell(what: impl Display) {
    println!("\n{what}{WORD}");
}

const DIRECTORY: &str = "DYNAMO_KV_TEST_DIRECTORY";
const WORD: &str = "DONE";
