//! `RadixTree`: one thread, no locks.

use std::cell::RefCell;
use std::rc::Rc;

use dynamo_kv_router::RadixTree;
use dynamo_kv_router::protocols::RouterEvent;

use super::Asked;
use crate::index::{Index, Reader};
use crate::workload::{Event, Prompt, Workload};

struct Tree {
    tree: Rc<RefCell<RadixTree>>,
    prepared: Vec<RouterEvent>,
}

pub fn make() -> Box<dyn Index> {
    Box::new(Tree { tree: Rc::new(RefCell::new(RadixTree::new())), prepared: Vec::new() })
}

impl Index for Tree {
    fn prepare(&mut self, workload: &Workload, events: &[Event]) {
        self.prepared = super::events(workload, events);
    }

    fn apply(&mut self) {
        let mut tree = self.tree.borrow_mut();
        for event in std::mem::take(&mut self.prepared) {
            tree.apply_event(event).expect("events are in order");
        }
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(Finder { tree: Rc::clone(&self.tree), asked: Asked::default() })
    }
}

struct Finder {
    tree: Rc<RefCell<RadixTree>>,
    asked: Asked,
}

impl Reader for Finder {
    fn ask(&mut self, prompt: &Prompt) {
        self.asked.ask(prompt);
    }

    fn find(&mut self) {
        let hashes = std::mem::take(&mut self.asked.hashes);
        self.asked.scores = self.tree.borrow().find_matches(hashes, false);
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        self.asked.found(each);
    }
}
