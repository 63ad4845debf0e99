//! What the programs of a fleet share: a log, a word on standard output, the signals that end them.

use std::io::Write as _;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Writes warnings and errors of all crates to standard error from now on.
pub fn log_warnings() {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    log.with_max_level(tracing::Level::WARN).with_ansi(false).init();
}

/// Writes a line to standard output; that nobody reads them ends nothing.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// SIGTERM and SIGINT, from its making on.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// Starts to listen: the signals end the process no more by themselves.
    pub fn new() -> Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    /// Waits for the next of either.
    ///
    /// # Cancel safety
    /// Cancel safe; a signal that comes meanwhile counts next time.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
