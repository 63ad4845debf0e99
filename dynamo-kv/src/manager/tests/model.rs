use std::collections::{BTreeMap, BTreeSet};

use super::{AllocateError, BlockIdentity, BlockKey, CAPACITY, Limit};
use crate::evict::RetentionPriority;

/// The pool as its contract says it, computed the slow way.
pub(super) struct Model {
    pub(super) blocks: BTreeMap<BlockIdentity, ModelBlock>,
    /// The manager itself, then its quotas.
    pub(super) tenants: Vec<Tenant>,
    clock: u64,
}

pub(super) struct Tenant {
    pub(super) quota: Option<usize>,
    pub(super) unshared: usize,
    last_use: u64,
}

pub(super) struct ModelBlock {
    pub(super) key: BlockKey,
    pub(super) tenant: usize,
    pub(super) priority: RetentionPriority,
    /// It was registered while the block before it was: else it stands alone.
    is_linked: bool,
    guards: usize,
    last_use: u64,
    pub(super) uses: u32,
}

impl Model {
    pub(super) fn new() -> Self {
        let mut this = Self { blocks: BTreeMap::new(), tenants: Vec::new(), clock: 1 };
        this.add_tenant(None);
        this
    }

    /// Adds a tenant, and returns its number.
    pub(super) fn add_tenant(&mut self, quota: Option<usize>) -> usize {
        self.tenants.push(Tenant { quota, unshared: 0, last_use: 0 });
        self.tenants.len() - 1
    }

    /// Takes note of uses, as matching and registering count them.
    pub(super) fn tick(&mut self, uses: usize) {
        self.clock += uses as u64;
    }

    fn is_active(&self, identity: BlockIdentity) -> bool {
        self.blocks[&identity].guards > 0
            || self.followers(identity).any(|follower| self.is_active(follower))
    }

    fn followers(&self, identity: BlockIdentity) -> impl Iterator<Item = BlockIdentity> + '_ {
        let follows =
            move |block: &&ModelBlock| block.is_linked && block.key.parent == Some(identity);
        self.blocks.values().filter(follows).map(|block| block.key.identity)
    }

    pub(super) fn active(&self) -> BTreeSet<BlockIdentity> {
        self.blocks.keys().copied().filter(|&identity| self.is_active(identity)).collect()
    }

    /// Returns how many blocks are active and how many cached, of all or of one tenant.
    pub(super) fn registered(&self, tenant: Option<usize>) -> (usize, usize) {
        let active = self.active();
        let is_its = |block: &&ModelBlock| tenant.is_none_or(|tenant| block.tenant == tenant);
        let all = self.blocks.values().filter(is_its);
        let (held, cached): (Vec<_>, Vec<_>) =
            all.partition(|block| active.contains(&block.key.identity));
        (held.len(), cached.len())
    }

    pub(super) fn unshared(&self) -> usize {
        self.tenants.iter().map(|tenant| tenant.unshared).sum()
    }

    pub(super) fn free(&self) -> usize {
        CAPACITY - self.blocks.len() - self.unshared()
    }

    /// Returns how many blocks a tenant may still take, whatever there are.
    fn room(&self, tenant: usize) -> usize {
        let (active, cached) = self.registered(Some(tenant));
        let taken = active + cached + self.tenants[tenant].unshared;
        self.tenants[tenant].quota.map_or(usize::MAX, |quota| quota - taken)
    }

    pub(super) fn matched(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.blocks.contains_key(&key.identity)).count()
    }

    /// Registers a block, and holds it: that which is there, or else a new one.
    pub(super) fn register(&mut self, key: &BlockKey, tenant: usize, priority: RetentionPriority) {
        if let Some(there) = self.blocks.get_mut(&key.identity) {
            there.priority = there.priority.max(priority);
            return self.pin(key);
        }
        let is_linked = key.parent.is_some_and(|parent| self.blocks.contains_key(&parent));
        let (last_use, uses) = (0, 0);
        let key = *key;
        let block = ModelBlock { key, tenant, priority, is_linked, guards: 1, last_use, uses };
        self.blocks.insert(key.identity, block);
    }

    /// Holds a block that was found.
    pub(super) fn pin(&mut self, key: &BlockKey) {
        self.hold(key.identity);
        self.blocks.get_mut(&key.identity).unwrap().uses += 1;
    }

    /// Returns the blocks that a block keeps.
    pub(super) fn linked_before(&self, identity: BlockIdentity) -> Vec<BlockIdentity> {
        let before = |identity: &BlockIdentity| {
            let block = &self.blocks[identity];
            block.key.parent.filter(|_| block.is_linked)
        };
        std::iter::successors(before(&identity), before).collect()
    }

    /// Holds a block that is held already.
    pub(super) fn hold(&mut self, identity: BlockIdentity) {
        self.blocks.get_mut(&identity).unwrap().guards += 1;
    }

    pub(super) fn unpin(&mut self, identity: BlockIdentity) {
        self.blocks.get_mut(&identity).unwrap().guards -= 1;
        // What is released by this, leaf first: the block and then what it was alone in keeping.
        let mut next = Some(identity);
        while let Some(identity) = next {
            if !self.blocks.contains_key(&identity) || self.is_active(identity) {
                return;
            }
            let block = self.blocks.get_mut(&identity).unwrap();
            let tenant = &mut self.tenants[block.tenant];
            tenant.last_use = self.clock.max(tenant.last_use + 1);
            block.last_use = tenant.last_use;
            next = block.key.parent.filter(|_| block.is_linked);
        }
    }

    /// Makes room for `count` blocks of a tenant, or says what there is too little of.
    pub(super) fn allocate(&mut self, tenant: usize, count: usize) -> Result<(), AllocateError> {
        let room = self.room(tenant);
        let own = room.saturating_add(self.registered(Some(tenant)).1);
        let all = self.free() + self.registered(None).1;
        if count > own.min(all) {
            let (limit, available) =
                if own <= all { (Limit::Quota, own) } else { (Limit::Pool, all) };
            let quota = self.tenants[tenant].quota.filter(|_| limit == Limit::Quota);
            let capacity = quota.unwrap_or(CAPACITY);
            return Err(AllocateError { requested: count, available, capacity, limit });
        }
        for _ in room..count {
            self.evict(Some(tenant), None);
        }
        let mut last = None;
        while self.free() < count {
            last = Some(self.evict(None, last));
        }
        self.tenants[tenant].unshared += count;
        Ok(())
    }

    /// Evicts the leaf that goes first, of all or of one tenant; of several with the same last use one of
    /// the tenant that was `last`. Returns whose it was.
    fn evict(&mut self, tenant: Option<usize>, last: Option<usize>) -> usize {
        let active = self.active();
        let victim = self
            .blocks
            .values()
            .filter(|block| tenant.is_none_or(|tenant| block.tenant == tenant))
            .filter(|block| !active.contains(&block.key.identity))
            .filter(|block| self.followers(block.key.identity).next().is_none())
            .min_by_key(|block| {
                let is_other = Some(block.tenant) != last;
                (block.priority, block.last_use, is_other, block.tenant)
            })
            .map(|block| block.key.identity)
            .unwrap();
        self.blocks.remove(&victim).unwrap().tenant
    }
}
