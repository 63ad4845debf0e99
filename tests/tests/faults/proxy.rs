//! What stands between two ends and can cut them off.

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Carries connections until it resets them all, and all that come.
pub(crate) struct Proxy {
    pub(crate) address: String,
    is_broken: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Carries connections to `target`, `tcp:host:port`; its own address has the same form.
    pub(crate) async fn start(target: &str) -> Result<Self> {
        let target = target.trim_start_matches("tcp:").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("tcp:{}", listener.local_addr()?);
        let is_broken = watch::Sender::new(false);
        let (mut tasks, broken) = (JoinSet::new(), is_broken.subscribe());
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                carried.spawn(carry(socket, target.clone(), broken.clone()));
            }
        });
        Ok(Self { address, is_broken, _tasks: tasks })
    }

    pub(crate) fn reset(&self) {
        self.is_broken.send_replace(true);
    }
}

async fn carry(mut near: TcpStream, target: String, mut broken: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _ = broken.wait_for(|is_broken| *is_broken) => {
            // Closed so, a socket says RST and not FIN.
            near.set_zero_linger().unwrap();
            far.set_zero_linger().unwrap();
        }
    }
}
