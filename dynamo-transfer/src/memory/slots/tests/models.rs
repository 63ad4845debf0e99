//! Every order in which threads hold, let go and take back. Who reads a slot and who writes it say so
//! to a cell that is checked: bytes are not.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::super::*;

/// A cell for each slot.
#[derive(Clone)]
struct Cells(Arc<[UnsafeCell<u8>; 2]>);

// SAFETY: loom fails where accesses race.
unsafe impl Send for Cells {}

impl Cells {
    fn new() -> Self {
        Self(Arc::new([UnsafeCell::new(0), UnsafeCell::new(0)]))
    }

    fn read(&self, slot: usize) {
        self.0[slot].with(|_| ());
    }

    fn write(&self, slot: usize) {
        self.0[slot].with_mut(|_| ());
    }
}

fn two_slots() -> [Slot; 2] {
    let mut slots = HostBuffer::new(2).into_slots(1);
    [slots.pop().unwrap(), slots.pop().unwrap()]
}

#[test]
fn whoever_takes_a_slot_back_writes_after_all_have_read() {
    loom::model(|| {
        let (cells, [slot, other]) = (Cells::new(), two_slots());
        cells.write(0);
        let mine = slot.share();
        let theirs = (mine.clone(), cells.clone());
        let reader = thread::spawn(move || {
            let (hold, cells) = theirs;
            let again = hold.clone();
            drop(hold);
            cells.read(0);
            drop(again);
        });
        match mine.into_owned(None) {
            Ok(_) => cells.write(0),
            Err(held) => {
                cells.read(0);
                drop(held);
            }
        }
        reader.join().unwrap();
        drop(other);
    });
}

#[test]
fn a_run_keeps_what_its_last_slot_holds() {
    loom::model(|| {
        let (cells, [first, second]) = (Cells::new(), two_slots());
        cells.write(0);
        cells.write(1);
        let [first, hold] = first.share_behind(None);
        let [second, last] = second.share_behind(Some(hold));
        let theirs = cells.clone();
        let run = last.into_run(2);
        let reader = thread::spawn(move || {
            theirs.read(0);
            theirs.read(1);
            drop(run);
        });
        // As a pool evicts: the last one first, and what it held with it.
        match second.into_owned(None) {
            Ok((slot, before)) => {
                cells.write(1);
                drop(slot);
                assert!(first.into_owned(before).is_ok(), "nobody else held it");
                cells.write(0);
            }
            Err(second) => {
                let first = first.into_owned(None).unwrap_err();
                drop((first, second));
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn the_last_of_all_holds_frees_the_buffer_once() {
    loom::model(|| {
        let home = Arc::new(());
        let mut slots = HostBuffer::new(2).into_slots_of(1, Arc::clone(&home));
        let [first, hold] = slots.pop().unwrap().share_behind(None);
        let [second, last] = slots.pop().unwrap().share_behind(Some(hold));
        let run = last.into_run(2);
        let others = thread::spawn(move || drop(run));
        drop(first);
        drop(second);
        others.join().unwrap();
        assert_eq!(Arc::strong_count(&home), 1);
    });
}

/// What the slots of a buffer lead to: it goes with the buffer, and says so.
struct Freed(Cells);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.write(0);
    }
}

#[test]
fn the_buffer_goes_after_all_have_read() {
    loom::model(|| {
        let cells = Cells::new();
        let mut slots = HostBuffer::new(2).into_slots_of(1, Freed(cells.clone()));
        let (shared, other) = (slots.pop().unwrap().share(), slots.pop().unwrap());
        let readers = [shared.clone(), shared].map(|hold| {
            let cells = cells.clone();
            thread::spawn(move || {
                cells.read(0);
                drop(hold);
            })
        });
        cells.read(0);
        drop(other);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
