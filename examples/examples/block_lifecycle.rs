//! One block from free to shared to evicted, with the events that others see.

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};

#[expect(clippy::print_stdout, reason = "an example talks to a person")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layout = BlockLayout::new(2, 1, 8, BlockSize::DEFAULT, DType::F32)?;
    println!("a block of {} tokens has {} bytes", layout.block_size(), layout.block_bytes());
    let print = |event: KvEvent| println!("    event {}: {:?}", event.seq, event.change);
    let worker = WorkerId::new(InstanceId(1));
    let manager = BlockManager::new(ManagerConfig::new(layout, 2), worker, Box::new(print))?;
    let show = |what: &str| {
        let s = manager.stats();
        println!(
            "{what}: {} free, {} mutable, {} complete, {} active, {} cached",
            s.free, s.mutable, s.complete, s.active, s.cached
        );
    };
    show("a pool of two");

    let prompt: Vec<u32> = (0..32).collect();
    let sequence = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &prompt);
    let mut block = manager.allocate(1)?.remove(0);
    show("allocated");
    // A real engine writes K and V here, plane by plane.
    block[layout.keys(0)].fill(1);

    let block = block.complete(sequence.keys()[0]);
    show("complete");
    let block = manager.register(block);
    show("registered");

    let other_reader = manager.match_prefix(sequence.keys());
    println!("a second sequence finds {} of {} blocks", other_reader.len(), sequence.keys().len());
    drop((block, other_reader));
    show("nobody reads it any more");

    let wanted = manager.allocate(2)?;
    show("room was needed");
    drop(wanted);
    match manager.allocate(3) {
        Ok(_) => println!("this cannot happen"),
        Err(error) => println!("refused: {error}"),
    }
    Ok(())
}
