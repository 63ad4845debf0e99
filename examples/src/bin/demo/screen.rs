//! Progress, on a line that is written over; nothing where the output is no terminal.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _, stdout};
use std::sync::{Arc, Mutex, PoisonError};

use dynamo_examples::engine::Progress;

/// A line at the end of the output.
pub(crate) struct Line {
    is_terminal: bool,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { is_terminal: stdout().is_terminal() }
    }

    /// Writes the line anew.
    pub(crate) fn show(&self, text: &str) {
        if self.is_terminal {
            // Return, text, clear to the end of the line.
            print!("\r{text}\x1b[K");
            // The line is only for show.
            let _ = stdout().flush();
        }
    }

    /// Leaves nothing behind.
    pub(crate) fn clear(&self) {
        self.show("");
    }
}

/// The prefills that run, together on one line.
pub(crate) struct Screen {
    line: Line,
    running: Mutex<BTreeMap<String, (usize, usize)>>,
}

impl Screen {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { line: Line::new(), running: Mutex::default() })
    }

    /// Returns what workers tell their progress to.
    pub(crate) fn prefills(self: &Arc<Self>) -> Arc<dyn Fn(&Progress<'_>) + Send + Sync> {
        let screen = Arc::clone(self);
        Arc::new(move |progress| screen.show(progress))
    }

    fn show(&self, progress: &Progress<'_>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, total) = (progress.tokens_done, progress.tokens_total);
        if done < total {
            running.insert(progress.request.to_string(), (done, total));
        } else {
            running.remove(progress.request.as_str());
        }
        if running.is_empty() {
            self.line.clear();
        } else {
            let parts: Vec<_> =
                running.values().map(|(done, total)| format!("{done}/{total}")).collect();
            self.line.show(&format!("  prefilling {} tokens", parts.join(" and ")));
        }
    }
}
