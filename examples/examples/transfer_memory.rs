//! One agent reads another's memory over TCP, and is refused once the memory is revoked.

use dynamo_transfer::{Agent, AgentConfig, BackendKind, HostBuffer, Result, TransferOptions};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let owner = AgentConfig::default().with_name("owner").with_tcp_listen(listen);
    let owner = Agent::start(owner).await?;
    let reader = Agent::start(AgentConfig::default().with_name("reader")).await?;

    // The owner registers two pieces; to the reader they are one region of 32 bytes.
    let mut pieces = vec![HostBuffer::new(16), HostBuffer::new(16)];
    pieces[0].copy_from_slice(b"the first piece ");
    pieces[1].copy_from_slice(b"and the second. ");
    let source = owner.register(pieces)?;
    let metadata = owner.metadata([source.grant()])?;
    println!("metadata: {} bytes, to be carried over any channel", metadata.len());

    // The reader takes scattered ranges, in the order it wants them.
    let peer = reader.load_metadata(&metadata)?;
    let target = reader.register_mut(vec![HostBuffer::new(17)])?;
    let remote = peer.regions()[0].descriptor([(16, 4), (4, 12), (31, 1)])?;
    let report = reader
        .read(target.descriptor([(0, 17)])?, remote.clone(), TransferOptions::default())
        .await?;
    println!("{} bytes by {} in {:?}", report.bytes, report.backend, report.elapsed);

    // Closing revokes: the same descriptor is refused from then on.
    let pieces = source.close().await;
    println!("the owner has its {} pieces back", pieces.len());
    let again = target.descriptor([(0, 17)])?;
    match reader.read(again, remote, TransferOptions::default()).await {
        Ok(_) => println!("this cannot happen"),
        Err(error) => println!("second read: {error}"),
    }
    // What an exporter reads from time to time: counts, by backend where that matters.
    let stats = reader.stats();
    println!(
        "the reader has posted {}, completed {} ({} bytes over TCP), failed {}; {} in flight",
        stats.posted_total,
        stats.completed_total,
        stats.bytes_by(BackendKind::Tcp),
        stats.failed_total,
        stats.in_flight(),
    );
    let buffer = target.close().await;
    println!("{:?}", String::from_utf8_lossy(&buffer[0]));
    owner.shutdown().await;
    reader.shutdown().await;
    Ok(())
}
