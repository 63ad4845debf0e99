//! Processes of a test: this very program in another one, which answers each line that it is told.

use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The other process; killed on drop.
pub(crate) struct Asked {
    pub(crate) process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Asked {
    /// Starts what `args` say of this program, as what another one starts if `before` names one.
    pub(crate) fn start(before: &[&str], args: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = before.iter().map(Into::into).chain([program.into_os_string()]);
        let mut process = Command::new(words.next().unwrap())
            .args(words)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        let input = process.stdin.take().unwrap();
        Self { process, input, output }
    }

    /// Says a line and returns the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut said = self.output.by_ref().map_while(Result::ok);
        said.find_map(|line| line.strip_prefix(ANSWER).map(str::to_owned)).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Answers, in the other process.
#[expect(clippy::print_stdout, reason = "processes of a test talk so")]
pub(crate) fn answer(answer: &str) {
    // The harness may have begun a line.
    println!("\n{ANSWER}{answer}");
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    (0..hex.len() / 2).map(byte).collect()
}

/// What answers begin with.
const ANSWER: &str = "ANSWER ";
