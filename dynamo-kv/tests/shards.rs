//! Hand-offs between workers of other degrees of tensor parallelism, whose blocks lie otherwise.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_kv::layout::{AxisOrder, Index, KvShape, RankLayout, TpShard};
use dynamo_kv::{
    BlockManager, DType, Handoff, HandoffConfig, ManagerConfig, MutableBlock, Pulled, Settlement,
    Staged, TokenSequence,
};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};

const TOKENS: usize = 40;
const HEADS: usize = 4;

/// A worker of one rank.
struct Worker {
    layout: RankLayout,
    manager: BlockManager,
    handoff: Handoff,
    agent: Agent,
}

fn sequence() -> TokenSequence {
    let tokens: Vec<u32> = (0..).take(TOKENS).collect();
    TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens)
}

impl Worker {
    async fn start(
        fabric: Option<&MemoryFabric>,
        order: AxisOrder,
        (rank, degree): (usize, usize),
    ) -> Self {
        let shape = KvShape::new(3, HEADS, 16, BlockSize::DEFAULT, DType::Bf16).unwrap();
        let layout = RankLayout::new(shape, order, TpShard::new(rank, degree).unwrap()).unwrap();
        let config = AgentConfig::default().with_name(format!("rank {rank} of {degree}"));
        let config = match fabric {
            Some(fabric) => config.with_fabric(fabric.clone()),
            None => config.with_tcp_listen("127.0.0.1:0".parse().unwrap()),
        };
        let agent = Agent::start(config).await.unwrap();
        let id = WorkerId::new(InstanceId::random());
        let manager =
            BlockManager::new(ManagerConfig::new(layout.clone(), 8), id, Box::new(|_| {})).unwrap();
        let handoff =
            Handoff::new(agent.clone(), manager.clone(), HandoffConfig::default()).unwrap();
        Self { layout, manager, handoff, agent }
    }

    async fn group(fabric: Option<&MemoryFabric>, order: AxisOrder, degree: usize) -> Vec<Self> {
        let mut workers = Vec::new();
        for rank in 0..degree {
            workers.push(Self::start(fabric, order, (rank, degree)).await);
        }
        workers
    }

    /// Goes through the vectors that a block here is made of, and where they are.
    fn vectors(&self, block: usize) -> Vec<(Index, std::ops::Range<usize>)> {
        let (shape, cache) = (*self.layout.shape(), self.layout.blocks(1).unwrap());
        let mut all = Vec::new();
        for layer in 0..shape.layers() {
            for plane in 0..shape.planes() {
                for token in 0..shape.block_size().tokens() {
                    for head in self.layout.heads() {
                        let index = Index { block: 0, layer, plane, token, head };
                        let at = cache.place(index).unwrap().offset;
                        all.push((Index { block, ..index }, at..at + shape.vector_bytes()));
                    }
                }
            }
        }
        all
    }

    /// Computes this rank's part of two full blocks and a tail of eight tokens, and stages it.
    fn stage(&self, seed: usize) -> Staged {
        let mut blocks = self.manager.allocate(3).unwrap();
        for (number, block) in blocks.iter_mut().enumerate() {
            for (index, at) in self.vectors(number) {
                block[at].copy_from_slice(&vector(seed, index));
            }
        }
        let tail = blocks.pop().unwrap().into_partial(TOKENS % 16);
        let sequence = sequence();
        let complete = blocks.into_iter().zip(sequence.keys());
        let complete = complete.map(|(block, key)| block.complete(*key)).collect();
        let blocks = self.manager.register_all(complete).into_iter().collect();
        self.handoff.stage(blocks, Some(tail)).unwrap()
    }

    async fn pull(&self, staged: &[Staged]) -> Pulled {
        let tickets = staged.iter().map(Staged::ticket);
        self.handoff.pull(tickets, &sequence(), None).await.unwrap()
    }

    fn assert_has(&self, pulled: &Pulled, seed: usize) {
        assert_eq!((pulled.blocks.len(), pulled.tail_tokens), (2, 8));
        let tail = pulled.tail.as_ref().map(<MutableBlock as AsRef<[u8]>>::as_ref).unwrap();
        let blocks = pulled.blocks.iter().map(AsRef::as_ref).chain([tail]);
        for (number, block) in blocks.enumerate() {
            for (index, at) in self.vectors(number) {
                assert_eq!(block[at], vector(seed, index), "{index:?} at {:?}", self.layout);
            }
        }
        let bytes = 3 * self.layout.block_bytes() as u64;
        assert_eq!(pulled.report.bytes, bytes, "what is needed, and no more");
    }
}

/// Of a block of the model: random, and the same for whoever has it.
fn vector(seed: usize, index: Index) -> [u8; 32] {
    let Index { block, layer, plane, token, head } = index;
    let named = format!("{seed} {block} {layer} {plane} {token} {head}");
    *blake3::hash(named.as_bytes()).as_bytes()
}

async fn from_two_ranks_to_one_and_back(
    fabric: Option<&MemoryFabric>,
    (prefill, decode): (AxisOrder, AxisOrder),
    seed: usize,
) {
    let halves = Worker::group(fabric, prefill, 2).await;
    let whole = Worker::start(fabric, decode, (0, 1)).await;
    let back = Worker::group(fabric, prefill, 2).await;

    let mut staged: Vec<_> = halves.iter().map(|half| half.stage(seed)).collect();
    let pulled = whole.pull(&staged).await;
    whole.assert_has(&pulled, seed);
    for staged in &mut staged {
        assert_eq!(staged.settled().await, Settlement::Pulled);
    }

    let Pulled { blocks, tail, tail_tokens, .. } = pulled;
    let tail = tail.unwrap().into_partial(tail_tokens);
    let mut staged = whole.handoff.stage_for(2, blocks, Some(tail)).unwrap();
    for (half, staged) in back.iter().zip(&mut staged) {
        let pulled = half.pull(std::slice::from_ref(staged)).await;
        half.assert_has(&pulled, seed);
        assert_eq!(staged.settled().await, Settlement::Pulled);
    }
    for worker in halves.iter().chain([&whole]).chain(&back) {
        assert_eq!(worker.handoff.staged_blocks(), 0);
        worker.handoff.shutdown().await;
        worker.agent.shutdown().await;
        let stats = worker.manager.stats();
        assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn blocks_go_from_two_ranks_to_one_and_back_exactly_in_one_process() {
    let orders = [AxisOrder::BLOCKS_NHD, AxisOrder::BLOCKS_HND];
    for (seed, (prefill, decode)) in
        orders.iter().flat_map(|prefill| orders.map(|decode| (*prefill, decode))).enumerate()
    {
        let fabric = MemoryFabric::new();
        from_two_ranks_to_one_and_back(Some(&fabric), (prefill, decode), seed).await;
    }
}

#[tokio::test]
async fn blocks_go_from_two_ranks_to_one_and_back_exactly_over_tcp() {
    let orders = (AxisOrder::BLOCKS_NHD, AxisOrder::BLOCKS_HND);
    from_two_ranks_to_one_and_back(None, orders, 7).await;
}

#[tokio::test]
async fn one_rank_of_two_leaves_nothing_shared_and_the_other_as_it_was() {
    let fabric = MemoryFabric::new();
    let halves = Worker::group(Some(&fabric), AxisOrder::BLOCKS_NHD, 2).await;
    let whole = Worker::start(Some(&fabric), AxisOrder::BLOCKS_NHD, (0, 1)).await;
    let staged: Vec<_> = halves.iter().map(|half| half.stage(1)).collect();
    let [first, second] = staged.try_into().unwrap();
    let tickets = [first.ticket().clone(), second.ticket().clone()];
    drop(second);
    let error = whole.handoff.pull(&tickets, &sequence(), None).await.unwrap_err();
    assert_eq!(error.kind(), dynamo_core::ErrorKind::NotFound);
    assert_eq!(whole.manager.stats().cached, 0);

    let second = halves[1].stage(1);
    let pulled = whole.pull(&[first, second]).await;
    whole.assert_has(&pulled, 1);
}
