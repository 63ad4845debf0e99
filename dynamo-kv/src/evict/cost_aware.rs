use super::ages::Ages;
use super::queue::{Nodes, Queue};
use super::{EntryId, Eviction, Use};

/// Evicts the block that saves the least time, unless it was used lately.
///
/// GreedyDual-Size-Frequency (Cherkasova: "Improving WWW proxies performance with
/// Greedy-Dual-Size-Frequency caching policy", HP Laboratories, HPL-98-69R1, 1998), which adds the
/// frequency to GreedyDual-Size (Cao, Irani: "Cost-aware WWW proxy caching algorithms", USITS 1997): a
/// block's priority is the cache's age at its last use plus what it saves, which is its cost times how
/// often it was used; the smallest goes first, and its priority is the age from then on. So a block that
/// saves twice as much stays twice as long unused, and none stays for ever: of its uses the first
/// eight count. All blocks have the same size, so what is saved per byte is what is saved per
/// block. What saves the same goes in the order of its last use.
///
/// The age at a block's last use is looked up: a block that was used long ago and becomes a leaf now
/// is as old as it is. The rank is the victim's priority, but for its last digits: instances of which
/// the smallest goes first keep about the same age.
#[derive(Debug)]
pub struct CostAware {
    nodes: Nodes,
    queue: Queue,
    ages: Ages,
    cost: BlockCost,
}

impl CostAware {
    /// Creates a policy for blocks that are as dear as `cost` says.
    pub fn new(cost: BlockCost) -> Self {
        Self { nodes: Nodes::default(), queue: Queue::default(), ages: Ages::default(), cost }
    }
}

impl Eviction for CostAware {
    fn insert(&mut self, block: EntryId, usage: Use) {
        // To register it was the first use.
        let uses = usage.uses.saturating_add(1).min(USES_MAX);
        let saved = self.cost.seconds(usage.depth) * f64::from(uses);
        self.ages.reach(saved);
        let priority = self.ages.at(usage.last_use) + saved;
        // Numbers that are not negative are in the order of their bits.
        self.queue.insert(&mut self.nodes, block, priority.to_bits());
    }

    fn remove(&mut self, block: EntryId) {
        self.queue.remove(&mut self.nodes, block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        let (block, priority) = self.queue.pop(&mut self.nodes)?;
        self.ages.grow_to(f64::from_bits(priority));
        Some(block)
    }

    fn rank(&self) -> Option<u64> {
        self.queue.first(&self.nodes).map(|(_, priority)| priority >> 2)
    }
}

/// Uses that count.
const USES_MAX: u32 = 8;

/// What a block costs that is not there, in seconds: to be computed, or loaded from a lower tier,
/// whichever is faster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockCost {
    compute_s: f64,
    compute_per_depth_s: f64,
    load_s: f64,
}

impl BlockCost {
    /// Describes blocks that are computed: the first of a sequence in `compute_s` seconds, each other
    /// in `compute_per_depth_s` seconds more for each block before it, which it attends to.
    pub const fn new(compute_s: f64, compute_per_depth_s: f64) -> Self {
        Self { compute_s, compute_per_depth_s, load_s: f64::INFINITY }
    }

    /// Describes blocks of `tokens` tokens of a dense transformer, from its size and the rate in FLOP/s
    /// at which it is computed.
    ///
    /// A token that attends to n others takes 2 N + 4 L n d FLOP for N parameters, L layers and
    /// width d: Kaplan et al., "Scaling laws for neural language models", 2020, table 1, where it is
    /// 2 N + 2 L n d, for the product by the keys is counted there and that by the values is not.
    pub fn of_model(model: ModelSize, tokens: usize, flops_per_second: f64) -> Self {
        let tokens = tokens as f64;
        let ModelSize { parameters, layers, width } = model;
        let attended = 4.0 * layers * width * tokens;
        // Of its own block a token attends to half.
        let compute = tokens * (2.0 * parameters + attended / 2.0);
        Self::new(compute / flops_per_second, tokens * attended / flops_per_second)
    }

    /// Says that a block can be loaded in `load_s` seconds, wherever it stands in its sequence.
    #[must_use]
    pub const fn with_load(mut self, load_s: f64) -> Self {
        self.load_s = load_s;
        self
    }

    /// Returns the cost of a block with `depth` blocks before it: finite, and not negative, whatever
    /// the numbers are.
    pub fn seconds(&self, depth: u32) -> f64 {
        let compute = self.compute_s + self.compute_per_depth_s * f64::from(depth);
        compute.min(self.load_s.min(SECONDS_MAX)).max(0.0)
    }
}

/// What the time to compute a token depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSize {
    /// Parameters that a token goes through.
    pub parameters: f64,
    /// Layers.
    pub layers: f64,
    /// Numbers per token between layers.
    pub width: f64,
}

/// Longer than any block is computed; sums of such numbers stay finite.
const SECONDS_MAX: f64 = 1e6;
