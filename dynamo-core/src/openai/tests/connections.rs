//! When a connection serves another request, and when it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// Passes on to a server what comes, and counts the connections.
struct Counting {
    url: String,
    count: Arc<AtomicUsize>,
    _passing: JoinSet<()>,
}

impl Counting {
    async fn before(server: &PlayedServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (count, address) = (Arc::new(AtomicUsize::new(0)), server.address());
        let its = Arc::clone(&count);
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                its.fetch_add(1, Ordering::Relaxed);
                passing.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(address).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, count, _passing: passing }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn an_answer_that_ended_leaves_its_connection_to_the_next_request() {
    let server = played([Fault::None, Fault::Refuse(400)]).await;
    let counting = Counting::before(&server).await;
    let engine = engine(&counting.url);
    asked(&engine, 5).await.unwrap();
    assert_eq!(asked(&engine, 5).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    engine.check().await.unwrap();
    asked(&engine, 5).await.unwrap();
    assert_eq!(counting.count(), 1);
    let both = tokio::join!(asked(&engine, 5), asked(&engine, 5));
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(counting.count(), 2, "one each for what runs at a time");
}

#[tokio::test]
async fn an_answer_that_broke_takes_its_connection_with_it() {
    let server = played([Fault::MalformedAfter(2)]).await;
    let counting = Counting::before(&server).await;
    let engine = engine(&counting.url);
    asked(&engine, 5).await.unwrap_err();
    asked(&engine, 5).await.unwrap();
    assert_eq!(counting.count(), 2);
}

#[tokio::test]
async fn a_server_that_was_restarted_is_dialled_anew() {
    let server = played([]).await;
    let engine = engine(server.url());
    asked(&engine, 5).await.unwrap();
    let script = Script { address: server.address(), ..Script::default() };
    server.shutdown().await;
    let server = PlayedServer::start(script).await.unwrap();
    asked(&engine, 5).await.unwrap();
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_connection_that_has_idled_is_not_used_again() {
    let server = played([]).await;
    let counting = Counting::before(&server).await;
    let engine = engine(&counting.url);
    asked(&engine, 5).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(4)).await;
    tokio::time::resume();
    asked(&engine, 5).await.unwrap();
    assert_eq!(counting.count(), 2);
}

#[tokio::test]
async fn so_many_connections_idle_at_most() {
    let server = played([]).await;
    let counting = Counting::before(&server).await;
    let engine = engine(&counting.url);
    for dialled in [40, 48] {
        let all = futures::future::join_all((0..40).map(|_| asked(&engine, 2))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(counting.count(), dialled);
    }
}
