//! Where the memory of copies goes whose future was dropped.
//!
//! A copy cannot be called back. The thread on which a device tells that it has passed must not call
//! the device, so it must not free memory either: it hands the leases over to a thread that may.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use super::device::Leases;
use crate::error::{Error, ErrorKind, Result};

/// The thread that gives up leases; it ends when told, or with the last that may send it any.
pub(super) struct Quarantine {
    grave: Grave,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Reaches the thread from wherever a copy ends.
#[derive(Clone)]
pub(crate) struct Grave {
    sender: SyncSender<Message>,
    /// Fires when the device is lost.
    lost: CancellationToken,
}

enum Message {
    Bury(Leases),
    Stop,
}

impl Quarantine {
    /// Starts the thread; `copies_max` leases exist at most.
    pub(super) fn start(copies_max: usize) -> Result<Self> {
        // One place for each that may be in flight and one for `Stop`: sending never waits.
        let (sender, receiver) = sync_channel(copies_max + 1);
        let thread = std::thread::Builder::new().name("device-quarantine".to_owned());
        let thread = thread.spawn(move || run(&receiver)).map_err(|error| {
            Error::new(ErrorKind::Overloaded, "no thread for the quarantine").with_source(error)
        })?;
        let grave = Grave { sender, lost: CancellationToken::new() };
        Ok(Self { grave, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn grave(&self) -> &Grave {
        &self.grave
    }

    /// Ends the thread and joins it; nothing is in flight any more. Blocks as long as the last memory
    /// takes to be freed.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It is gone already if the send fails.
            let _ = self.grave.sender.send(Message::Stop);
            // A lease that panics when dropped has told so itself.
            let _ = thread.join();
        }
    }
}

impl Grave {
    /// Gives the leases up on the thread. Never waits.
    pub(super) fn bury(&self, leases: Leases) {
        if let Err(error) = self.sender.try_send(Message::Bury(leases)) {
            // The thread was stopped. Leaking is what is left: freeing may call the device.
            #[expect(clippy::mem_forget, reason = "this thread must not free it")]
            std::mem::forget(error);
        }
    }

    pub(super) fn lose(&self) {
        self.lost.cancel();
    }

    /// Fires when the device is lost.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

fn run(messages: &Receiver<Message>) {
    while let Ok(Message::Bury(leases)) = messages.recv() {
        drop(leases);
    }
}
