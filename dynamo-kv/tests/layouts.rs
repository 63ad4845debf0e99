//! Blocks change their layout and their degree of tensor parallelism on their way between agents.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use dynamo_core::protocol::BlockSize;
use dynamo_kv::layout::{AxisOrder, CacheLayout, DType, Index, KvShape, Piece, TpShard, Transform};
use dynamo_transfer::{
    Agent, AgentConfig, HostBuffer, MemoryFabric, RegisteredRegion, RemoteAgent, TransferGroup,
    TransferOptions,
};

const BLOCKS: usize = 4;

/// A worker of one rank: a cache, and an agent that has its regions.
struct Worker {
    layout: CacheLayout,
    agent: Agent,
    regions: Vec<RegisteredRegion<HostBuffer>>,
}

impl Worker {
    async fn start(
        fabric: &MemoryFabric,
        order: AxisOrder,
        (rank, degree): (usize, usize),
    ) -> Self {
        let shape = KvShape::new(3, 4, 16, BlockSize::DEFAULT, DType::Bf16).unwrap();
        let shard = TpShard::new(rank, degree).unwrap();
        let layout = CacheLayout::of_shard(shape, BLOCKS, order, shard).unwrap();
        let name = format!("rank {rank} of {degree}");
        let config = AgentConfig::default().with_name(name).with_fabric(fabric.clone());
        let agent = Agent::start(config).await.unwrap();
        let region = || agent.register_peer_writable(vec![HostBuffer::new(layout.region_bytes())]);
        let regions = (0..layout.regions()).map(|_| region().unwrap()).collect();
        Self { layout, agent, regions }
    }

    async fn group(fabric: &MemoryFabric, order: AxisOrder, degree: usize) -> Vec<Self> {
        let mut workers = Vec::new();
        for rank in 0..degree {
            workers.push(Self::start(fabric, order, (rank, degree)).await);
        }
        workers
    }

    /// Looks at every vector of a block.
    fn each_vector(
        &self,
        block: usize,
        mut look: impl FnMut(&RegisteredRegion<HostBuffer>, u64, Index),
    ) {
        let shape = *self.layout.shape();
        for layer in 0..shape.layers() {
            for plane in 0..shape.planes() {
                for token in 0..shape.block_size().tokens() {
                    for head in self.layout.heads() {
                        let index = Index { block, layer, plane, token, head };
                        let place = self.layout.place(index).unwrap();
                        look(&self.regions[place.region], place.offset as u64, index);
                    }
                }
            }
        }
    }

    /// Pulls blocks from all ranks of another group.
    async fn pull(&self, owners: &[Self], blocks: &[(usize, usize)]) {
        let mut group = TransferGroup::default();
        for owner in owners {
            let grants = owner.regions.iter().map(RegisteredRegion::grant);
            let metadata = owner.agent.metadata(grants).unwrap();
            let peer = self.agent.load_metadata(&metadata).unwrap();
            let transform = Transform::new(&owner.layout, &self.layout).unwrap();
            let pieces = transform.pieces(blocks).unwrap();
            for target in 0..self.regions.len() {
                for source in 0..owner.regions.len() {
                    self.pull_region(&mut group, &peer, (source, target), &pieces);
                }
            }
        }
        group.all().await.unwrap();
    }

    fn pull_region(
        &self,
        group: &mut TransferGroup,
        peer: &RemoteAgent,
        (source, target): (usize, usize),
        pieces: &[Piece],
    ) {
        let between = pieces.iter().filter(|p| (p.from.region, p.to.region) == (source, target));
        let range = |offset: usize, len: usize| (offset as u64, len as u64);
        let from = between.clone().map(|piece| range(piece.from.offset, piece.len));
        let to = between.map(|piece| range(piece.to.offset, piece.len));
        let local = self.regions[target].descriptor(to.collect::<Vec<_>>()).unwrap();
        let remote = peer.regions()[source].descriptor(from.collect::<Vec<_>>()).unwrap();
        group.push(self.agent.read(local, remote, TransferOptions::default()));
    }
}

/// Of a block of the model: random, and the same for whoever has it.
fn vector(seed: u64, index: Index, len: usize) -> Vec<u8> {
    let Index { block, layer, plane, token, head } = index;
    let named = format!("{seed} {block} {layer} {plane} {token} {head}");
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(named.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn blocks_go_from_two_ranks_to_one_and_back_exactly() {
    let orders = [
        AxisOrder::BLOCKS_NHD,
        AxisOrder::BLOCKS_HND,
        AxisOrder::LAYERS_SPLIT_NHD,
        AxisOrder::LAYERS_HND,
        AxisOrder::PLANES_NHD,
    ];
    for (seed, (prefill, decode)) in orders.iter().zip(orders.iter().cycle().skip(2)).enumerate() {
        let fabric = MemoryFabric::new();
        let sources = Worker::group(&fabric, *prefill, 2).await;
        let whole = Worker::group(&fabric, *decode, 1).await;
        let back = Worker::group(&fabric, *prefill, 2).await;
        let len = whole[0].layout.shape().vector_bytes();
        let vector = |index| vector(seed as u64, index, len);
        for source in &sources {
            for block in 0..BLOCKS {
                source.each_vector(block, |region, offset, index| {
                    region.write_at(offset, &vector(index)).unwrap();
                });
            }
        }
        let there = [(0, 3), (2, 1), (1, 0)];
        whole[0].pull(&sources, &there).await;
        let and_back = there.map(|(from, to)| (to, from));
        for target in &back {
            target.pull(&whole, &and_back).await;
        }
        let mut bytes = vec![0; len];
        for (from, to) in there {
            whole[0].each_vector(to, |region, offset, index| {
                region.read_at(offset, &mut bytes).unwrap();
                assert_eq!(bytes, vector(Index { block: from, ..index }), "{prefill:?} {decode:?}");
            });
            for target in &back {
                target.each_vector(from, |region, offset, index| {
                    region.read_at(offset, &mut bytes).unwrap();
                    assert_eq!(bytes, vector(index), "{decode:?} {prefill:?}");
                });
            }
        }
        // The one that nothing went to.
        whole[0].each_vector(2, |region, offset, _| {
            region.read_at(offset, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0));
        });
    }
}
