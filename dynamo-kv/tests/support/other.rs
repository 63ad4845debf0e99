//! This very program in another process, which a test kills.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Another process that runs one of the ignored tests; killed on drop.
pub(crate) struct Other(Child);

impl Other {
    /// Starts the test of that name, which finds the directory by [`directory`].
    pub(crate) fn start(role: &str, dir: &Path) -> Self {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let child = program
            .args([role, "--exact", "--ignored", "--nocapture"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Self(child.spawn().unwrap())
    }

    /// Waits until it has [told](tell) something so often.
    pub(crate) fn hear(&mut self, times: usize) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        let told = lines.map_while(Result::ok).filter(|line| line.ends_with(WORD));
        assert_eq!(told.take(times).count(), times, "it has ended by itself");
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns where the other process works, if this is one.
#[expect(clippy::disallowed_methods, reason = "only the test that starts it tells it where")]
pub(crate) fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Tells the test that something was done.
#[expect(clippy::print_stdout, reason = "processes of a test talk so")]
pub(crate) fn tell() {
    println!("\n{WORD}");
}

const DIRECTORY: &str = "DYNAMO_KV_TEST_DIRECTORY";
const WORD: &str = "DONE";
