use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::message::{Attempt, Message};

/// Who waits for what owners say, by attempt.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<BTreeMap<Attempt, (usize, Sender)>>);

/// What comes of a word to an owner: its answer, or why it could not be said. With which of a pull's owners
/// that is.
pub(super) type Sender = mpsc::Sender<(usize, dynamo_transfer::Result<Message>)>;

impl Answers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Attempt, (usize, Sender)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is said to an attempt from now on.
    pub(super) fn wait(&self, attempt: Attempt, owner: usize, answers: Sender) {
        self.lock().insert(attempt, (owner, answers));
    }

    pub(super) fn forget(&self, attempt: &Attempt) {
        self.lock().remove(attempt);
    }

    /// Passes an answer on; it is lost if nobody waits, or if that one has too many already.
    pub(super) fn pass(&self, answer: Message) {
        if let Some((owner, answers)) = self.lock().get(answer.attempt()) {
            let _ = answers.try_send((*owner, Ok(answer)));
        }
    }
}
