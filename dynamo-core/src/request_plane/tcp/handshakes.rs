use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::super::remote::lock;

/// Who has connected to a server and not said hello yet, or waits for a place: a few at once, and
/// the oldest gives way.
///
/// A stranger costs memory before it is known who that is. One that says nothing is pushed out by
/// whoever comes later; one that answers is through long before.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    oldest_first: VecDeque<(u64, CancellationToken)>,
}

/// One handshake; dropped when it is over.
pub(super) struct Handshake {
    all: Arc<Handshakes>,
    id: u64,
    given_up: CancellationToken,
}

impl Handshakes {
    /// Counts another one, and gives up the oldest if there are too many.
    pub(super) fn begin(self: &Arc<Self>) -> Handshake {
        let given_up = CancellationToken::new();
        let mut waiting = lock(&self.0);
        let id = waiting.next;
        waiting.next += 1;
        waiting.oldest_first.push_back((id, given_up.clone()));
        let oldest =
            (waiting.oldest_first.len() > HANDSHAKES_MAX).then(|| waiting.oldest_first.pop_front());
        drop(waiting);
        if let Some((_, oldest)) = oldest.flatten() {
            oldest.cancel();
        }
        Handshake { all: Arc::clone(self), id, given_up }
    }
}

impl Handshake {
    /// Waits until later ones need the room.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.all.0).oldest_first.retain(|(id, _)| *id != self.id);
    }
}

/// A fleet that starts at once connects in one wave; each costs some tens of kilobytes.
const HANDSHAKES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_handshake_gives_way_and_none_is_counted_twice() {
        let all = Arc::<Handshakes>::default();
        let mut held: Vec<_> = (0..HANDSHAKES_MAX).map(|_| all.begin()).collect();
        assert!(held.iter().all(|one| !one.given_up.is_cancelled()));
        held.push(all.begin());
        let given_up = held.iter().map(|one| one.given_up.is_cancelled());
        assert_eq!(given_up.collect::<Vec<_>>()[..2], [true, false]);
        assert_eq!(lock(&all.0).oldest_first.len(), HANDSHAKES_MAX);
        held.truncate(3);
        assert_eq!(lock(&all.0).oldest_first.len(), 2);
    }
}
