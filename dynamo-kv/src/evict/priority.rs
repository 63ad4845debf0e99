use std::fmt;
use std::sync::Arc;

use super::{EntryId, Eviction, Lru, Use};

/// How dear a cached block is: whatever is of a lower priority goes first, and a policy chooses among
/// blocks of one.
///
/// It is asked for as a block is registered
/// ([`CompleteBlock::with_priority`](crate::CompleteBlock::with_priority)), or later by who holds it
/// ([`BlockRun::set_priority`](crate::BlockRun::set_priority)):
///
/// ```
/// # use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
/// # use dynamo_kv::{BlockLayout, BlockManager, BlockKey, DType, ManagerConfig, TokenSequence};
/// use dynamo_kv::evict::RetentionPriority;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
/// # let worker = WorkerId::new(InstanceId(1));
/// # let manager = BlockManager::new(ManagerConfig::new(layout, 2), worker, Box::new(|_event| {}))?;
/// # let sequence = |first: u32| {
/// #     let tokens: Vec<u32> = (first..first + 16).collect();
/// #     TokenSequence::new(&CacheNamespace::default(), BlockSize::DEFAULT, &tokens)
/// # };
/// let (system_prompt, question) = (sequence(0), sequence(100));
/// for (key, priority) in [
///     (system_prompt.keys()[0], RetentionPriority::High),
///     (question.keys()[0], RetentionPriority::Normal),
/// ] {
///     let block = manager.allocate(1)?.remove(0).complete(key);
///     drop(manager.register(block.with_priority(priority)));
/// }
/// // One has to go: not the one that was used longest ago.
/// let _room = manager.allocate(1)?;
/// assert_eq!(manager.match_prefix(system_prompt.keys()).len(), 1);
/// assert_eq!(manager.match_prefix(question.keys()).len(), 0);
/// # Ok(())
/// # }
/// ```
///
/// - A block goes after all that follow it, whatever their priorities are: what stands before a `High`
///   block stays as long as that does, and a `High` block does not keep those behind it.
/// - It compares the blocks of all of a manager's quotas
///   ([`BlockManager::with_quota`](crate::BlockManager::with_quota)), but for room that a quota asks of its
///   own blocks.
/// - It is not a pin: a `High` block goes when nothing lower is left. A guard is a pin.
/// - A block that is registered again takes the higher of both; only `set_priority` lowers it. Tiers do not
///   know it: what comes up from one is `Normal`.
/// - Each priority in use costs the memory of the policy once more, and what is not in use nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RetentionPriority {
    /// Goes before all others: what is not expected to be asked for again.
    Low,
    /// Goes by the policy: the default.
    #[default]
    Normal,
    /// Goes when nothing else is left: system prompts, what many sequences share.
    High,
}

/// Makes policies of one kind.
#[derive(Clone)]
pub(crate) struct EvictionFactory(Arc<dyn Fn() -> Box<dyn Eviction> + Send + Sync>);

impl EvictionFactory {
    pub(crate) fn new<E: Eviction>(eviction: impl Fn() -> E + Send + Sync + 'static) -> Self {
        Self(Arc::new(move || Box::new(eviction())))
    }

    pub(crate) fn make(&self) -> Box<dyn Eviction> {
        (self.0)()
    }
}

impl Default for EvictionFactory {
    /// What was used longest ago goes first.
    fn default() -> Self {
        Self::new(Lru::default)
    }
}

impl fmt::Debug for EvictionFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.make().fmt(f)
    }
}

/// A policy for each priority in use, of which the lowest gives the victim.
pub(crate) struct Levels {
    policies: [Option<Box<dyn Eviction>>; COUNT],
    make: EvictionFactory,
}

/// How many priorities there are.
const COUNT: usize = RetentionPriority::High as usize + 1;

/// Ranks of policies have so many bits; those above tell the priority.
const RANK_BITS: u32 = 62;

impl Levels {
    pub(crate) fn new(make: EvictionFactory) -> Self {
        Self { policies: [const { None }; COUNT], make }
    }

    /// Adds a block, as [`Eviction::insert`] does.
    pub(crate) fn insert(&mut self, block: EntryId, priority: RetentionPriority, usage: Use) {
        self.policies[priority as usize]
            .get_or_insert_with(|| self.make.make())
            .insert(block, usage);
    }

    /// Takes back a block that was added with that priority.
    pub(crate) fn remove(&mut self, block: EntryId, priority: RetentionPriority) {
        if let Some(policy) = &mut self.policies[priority as usize] {
            policy.remove(block);
        }
    }

    /// Chooses the block to evict, and removes it.
    pub(crate) fn victim(&mut self) -> Option<EntryId> {
        self.policies.iter_mut().flatten().find_map(|policy| policy.victim())
    }

    /// Returns what compares the next victims of several instances, of which the smallest goes first;
    /// below `u64::MAX`.
    pub(crate) fn rank(&self) -> Option<u64> {
        let mut ranks = self.policies.iter().zip(0_u64..).filter_map(|(policy, level)| {
            let rank = policy.as_ref()?.rank()?.min((1 << RANK_BITS) - 1);
            Some(level << RANK_BITS | rank)
        });
        ranks.next()
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.policies.iter().flatten()).finish()
    }
}
