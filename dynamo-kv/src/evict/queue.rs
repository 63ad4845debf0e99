use super::EntryId;

/// Entries in order of a key, the smallest first.
///
/// What comes in order of its key, from either end, stands in a doubly linked list: O(1). The rest
/// stands in a binary heap beside it: O(log n). Of equal keys, the one that came first goes first,
/// unless it comes where the list begins: then last.
#[derive(Debug)]
pub(super) struct Queue {
    first: u32,
    last: u32,
    listed: usize,
    heap: Vec<EntryId>,
}

/// Where the entries of one policy stand, each in one queue at most.
#[derive(Debug, Default)]
pub(super) struct Nodes(Vec<Node>);

#[derive(Debug, Clone, Copy)]
struct Node {
    key: u64,
    /// In a list the entry before this one; in a heap the place.
    before: u32,
    /// In a list the entry behind this one, or one of the words below.
    after: u32,
}

/// No entry.
const NONE: u32 = u32::MAX;
/// In place of the next entry: it stands in a heap.
const HEAPED: u32 = u32::MAX - 1;
/// In place of the next entry: it stands nowhere.
const AWAY: u32 = u32::MAX - 2;

impl Default for Queue {
    fn default() -> Self {
        Self { first: NONE, last: NONE, listed: 0, heap: Vec::new() }
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.listed + self.heap.len()
    }

    /// Adds an entry that stands nowhere.
    pub(super) fn insert(&mut self, nodes: &mut Nodes, entry: EntryId, key: u64) {
        nodes.reach(entry);
        debug_assert_eq!(nodes.at(entry).after, AWAY, "offered twice");
        let is_in_order = |end: u32, is_right: fn(&u64, &u64) -> bool| {
            end == NONE || is_right(&nodes.at(EntryId(end)).key, &key)
        };
        if is_in_order(self.last, u64::le) {
            let before = std::mem::replace(&mut self.last, entry.0);
            *nodes.at_mut(entry) = Node { key, before, after: NONE };
            *self.next_of(nodes, before) = entry.0;
            self.listed += 1;
        } else if is_in_order(self.first, u64::ge) {
            let after = std::mem::replace(&mut self.first, entry.0);
            *nodes.at_mut(entry) = Node { key, before: NONE, after };
            *self.previous_of(nodes, after) = entry.0;
            self.listed += 1;
        } else {
            *nodes.at_mut(entry) = Node { key, before: 0, after: HEAPED };
            self.heap.push(entry);
            self.rise(nodes, self.heap.len() - 1);
        }
    }

    /// Takes out an entry that stands here; nothing changes if it stands nowhere.
    pub(super) fn remove(&mut self, nodes: &mut Nodes, entry: EntryId) {
        let Some(&Node { before, after, .. }) = nodes.0.get(entry.index()) else { return };
        match after {
            AWAY => return,
            HEAPED => self.take_from_heap(nodes, before as usize),
            _ => {
                *self.next_of(nodes, before) = after;
                *self.previous_of(nodes, after) = before;
                self.listed -= 1;
            }
        }
        nodes.at_mut(entry).after = AWAY;
    }

    /// Returns the entry with the smallest key, and its key.
    pub(super) fn first(&self, nodes: &Nodes) -> Option<(EntryId, u64)> {
        let with_key = |entry: EntryId| (entry, nodes.at(entry).key);
        let listed = (self.first != NONE).then(|| with_key(EntryId(self.first)));
        let heaped = self.heap.first().map(|first| with_key(*first));
        match (listed, heaped) {
            (Some(listed), Some(heaped)) if heaped.1 < listed.1 => Some(heaped),
            (listed, heaped) => listed.or(heaped),
        }
    }

    /// Takes out the entry with the smallest key.
    pub(super) fn pop(&mut self, nodes: &mut Nodes) -> Option<(EntryId, u64)> {
        let first = self.first(nodes)?;
        self.remove(nodes, first.0);
        Some(first)
    }

    /// Returns where it is written what follows `entry`, or comes first of all.
    fn next_of<'a>(&'a mut self, nodes: &'a mut Nodes, entry: u32) -> &'a mut u32 {
        if entry == NONE { &mut self.first } else { &mut nodes.at_mut(EntryId(entry)).after }
    }

    /// Returns where it is written what stands before `entry`, or last of all.
    fn previous_of<'a>(&'a mut self, nodes: &'a mut Nodes, entry: u32) -> &'a mut u32 {
        if entry == NONE { &mut self.last } else { &mut nodes.at_mut(EntryId(entry)).before }
    }

    fn take_from_heap(&mut self, nodes: &mut Nodes, place: usize) {
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.sink(nodes, place);
            self.rise(nodes, place);
        }
    }

    fn rise(&mut self, nodes: &mut Nodes, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if nodes.at(self.heap[above]).key <= nodes.at(entry).key {
                break;
            }
            self.put(nodes, place, self.heap[above]);
            place = above;
        }
        self.put(nodes, place, entry);
    }

    fn sink(&mut self, nodes: &mut Nodes, mut place: usize) {
        let entry = self.heap[place];
        let below = |this: &Self, place: usize, nodes: &Nodes| {
            let both = 2 * place + 1..this.heap.len().min(2 * place + 3);
            both.min_by_key(|place| nodes.at(this.heap[*place]).key)
        };
        while let Some(next) = below(self, place, nodes)
            && nodes.at(self.heap[next]).key < nodes.at(entry).key
        {
            self.put(nodes, place, self.heap[next]);
            place = next;
        }
        self.put(nodes, place, entry);
    }

    fn put(&mut self, nodes: &mut Nodes, place: usize, entry: EntryId) {
        self.heap[place] = entry;
        nodes.at_mut(entry).before = u32::try_from(place).expect("entries are numbered by u32");
    }
}

impl Nodes {
    fn reach(&mut self, entry: EntryId) {
        assert!(entry.0 < EntryId::COUNT_MAX, "{entry:?} is out of bounds");
        if entry.index() >= self.0.len() {
            if entry.index() >= self.0.capacity() {
                // Not twice as many: a pool's part has about as many entries as it ever will.
                self.0
                    .reserve_exact(entry.index() + 1 - self.0.len() + (self.0.len() / 16).max(64));
            }
            self.0.resize(entry.index() + 1, Node { key: 0, before: NONE, after: AWAY });
        }
    }

    fn at(&self, entry: EntryId) -> &Node {
        &self.0[entry.index()]
    }

    fn at_mut(&mut self, entry: EntryId) -> &mut Node {
        &mut self.0[entry.index()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_node_takes_16_bytes() {
        assert_eq!(size_of::<Node>(), 16);
    }

    #[test]
    fn what_comes_in_order_from_either_end_does_not_enter_the_heap() {
        let (mut nodes, mut queue) = (Nodes::default(), Queue::default());
        for (entry, key) in [5, 5, 7, 4, 4, 9].into_iter().enumerate() {
            queue.insert(&mut nodes, EntryId::new(u32::try_from(entry).unwrap()), key);
        }
        assert_eq!((queue.listed, queue.heap.len()), (6, 0));
        queue.insert(&mut nodes, EntryId(6), 6);
        assert_eq!((queue.listed, queue.heap.len()), (6, 1));
    }

    proptest! {
        /// Two queues over the same nodes: neither takes from the other.
        #[test]
        fn a_queue_gives_the_smallest_key_whatever_was_taken_out_between(
            steps in prop::collection::vec((0..4u8, 0..24u32, 0..40u64), 0..400),
        ) {
            let mut nodes = Nodes::default();
            let mut queues = [Queue::default(), Queue::default()];
            let mut model = [const { Vec::<(u64, u32)>::new() }; 2];
            for (step, entry, key) in steps {
                let side = usize::from(entry % 2 == 1);
                let (queue, model) = (&mut queues[side], &mut model[side]);
                match step {
                    0 | 1 if !model.iter().any(|(_, other)| *other == entry) => {
                        queue.insert(&mut nodes, EntryId(entry), key);
                        model.push((key, entry));
                    }
                    0..3 => {
                        queue.remove(&mut nodes, EntryId(entry));
                        model.retain(|(_, other)| *other != entry);
                    }
                    _ => {
                        let popped = queue.pop(&mut nodes).map(|(entry, key)| (key, entry.0));
                        let smallest = model.iter().map(|(key, _)| *key).min();
                        prop_assert_eq!(popped.map(|(key, _)| key), smallest);
                        if let Some(popped) = popped {
                            let at = model.iter().position(|other| *other == popped);
                            model.swap_remove(at.expect("what is popped was inserted"));
                        }
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
