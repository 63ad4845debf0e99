use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use futures::{StreamExt, stream};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::engine::{Context, Engine, ResponseStream, SharedEngine, engine_fn};
use crate::error::ErrorKind;
use crate::name::Name;
use crate::wire::session::Session;

/// A server, and an instance of it that answers with what it is asked for; to 1 its answer never
/// ends.
struct Server {
    plane: TcpRequestPlane,
    instance: Instance,
    starts: Arc<AtomicU64>,
    _binding: Binding,
}

async fn server(places: usize, limits: Limits) -> Server {
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = TcpConfig::default().with_listen(listen).with_limits(limits);
    let plane = TcpRequestPlane::start_with(config, places).await.unwrap();
    let starts = Arc::<AtomicU64>::default();
    let started = Arc::clone(&starts);
    let engine: SharedEngine<u32, u32> = Arc::new(engine_fn(move |ctx: Context, asked: u32| {
        started.fetch_add(1, Ordering::Relaxed);
        async move {
            let rest = stream::pending().take(usize::from(asked == 1));
            Ok(ResponseStream::new(&ctx, stream::iter([Ok(asked)]).chain(rest)))
        }
    }));
    let name = |name| Name::new(name).unwrap();
    let endpoint = EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
    let id = InstanceId(1);
    let _binding = plane.bind(&endpoint, (id, 0), Ingress::new(engine)).await.unwrap();
    let (address, labels) = (Address(_binding.address().0.clone()), BTreeMap::new());
    let instance = Instance { id, incarnation: 0, endpoint, address, labels };
    Server { plane, instance, starts, _binding }
}

async fn caller() -> TcpRequestPlane {
    TcpRequestPlane::start(TcpConfig::default()).await.unwrap()
}

/// Asks once; what fails is not tried again here.
async fn ask(plane: &TcpRequestPlane, instance: &Instance, n: u32) -> Result<ResponseStream<u32>> {
    let engine = plane.dial(instance).await?.engine::<u32, u32>()?;
    Engine::generate(&engine, Context::new(), n).await
}

async fn asks(plane: &TcpRequestPlane, instance: &Instance) -> Result<Vec<u32>> {
    ask(plane, instance, 7).await?.collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_been_idle_longest_gives_way_and_loses_no_request_by_that() {
    let Server { plane: server, instance, _binding, .. } = server(2, Limits::default()).await;
    let callers = [caller().await, caller().await, caller().await];
    // Dialled once: what it is asked later has to find the way anew.
    let held = callers[0].dial(&instance).await.unwrap().engine::<u32, u32>().unwrap();
    for caller in &callers[..2] {
        assert_eq!(asks(caller, &instance).await.unwrap(), [7]);
    }
    let made = |callers: &[TcpRequestPlane; 3]| {
        callers.each_ref().map(|caller| caller.stats().connections_total)
    };
    assert_eq!(made(&callers), [1, 1, 0]);
    assert_eq!(asks(&callers[2], &instance).await.unwrap(), [7]);
    assert_eq!(asks(&callers[1], &instance).await.unwrap(), [7]);
    assert_eq!(made(&callers), [1, 1, 1], "the first had been idle longest");
    let answer = Engine::generate(&held, Context::new(), 7).await.unwrap();
    assert_eq!(answer.collect().await.unwrap(), [7]);
    assert_eq!(made(&callers), [2, 1, 1]);
    // Every place changes hands at every turn.
    for _ in 0..10 {
        for caller in &callers {
            assert_eq!(asks(caller, &instance).await.unwrap(), [7]);
            caller.probe(&instance).await.unwrap();
        }
    }
    for plane in callers.iter().chain([&server]) {
        plane.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_carries_a_stream_keeps_its_place_and_the_next_to_be_idle_gives_way() {
    let Server { plane: _server, instance, _binding, .. } = server(2, Limits::default()).await;
    let callers = [caller().await, caller().await, caller().await];
    let mut busy = Vec::new();
    for caller in &callers[..2] {
        let mut answer = ask(caller, &instance, 1).await.unwrap();
        assert_eq!(answer.next().await.unwrap().unwrap(), 1);
        busy.push(answer);
    }
    let error = asks(&callers[2], &instance).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    // It waits, and somebody is done meanwhile.
    let (asked, ()) = tokio::join!(asks(&callers[2], &instance), async {
        tokio::task::yield_now().await;
        busy.pop();
    });
    assert_eq!(asked.unwrap(), [7]);
    let left = busy[0].next();
    assert!(futures::poll!(Box::pin(left)).is_pending(), "it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_ends_and_the_next_request_makes_another() {
    let limits = Limits { idle_after: Duration::from_millis(50), ..Limits::default() };
    let Server { plane: _server, instance, _binding, .. } = server(8, limits).await;
    let (user, idler) = (caller().await, caller().await);
    let mut answer = ask(&user, &instance, 1).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), 1);
    let engine = idler.dial(&instance).await.unwrap().engine::<u32, u32>().unwrap();
    for n in 1..4 {
        // Ended, and noticed: both sides have let go of it.
        while !idler.tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let answer = Engine::generate(&engine, Context::new(), 7).await.unwrap();
        assert_eq!(answer.collect().await.unwrap(), [7]);
        assert_eq!(idler.stats().connections_total, n + 1);
    }
    assert!(futures::poll!(Box::pin(answer.next())).is_pending(), "a stream is use");
    assert_eq!(user.stats().connections_total, 1);
}

/// Carries the first connection to `to`, and lets the next ones through. While it holds, the client
/// hears nothing until it has said something, and that arrives only once the client has left.
async fn relay(to: SocketAddr, holds: watch::Receiver<bool>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, mut tasks) = (listener.local_addr().unwrap(), JoinSet::new());
    tasks.spawn(async move {
        let mut carried = JoinSet::new();
        let mut holds = Some(holds);
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            match holds.take() {
                Some(holds) => carried.spawn(hold(near, far, holds)),
                None => carried.spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }),
            };
        }
    });
    (at, tasks)
}

async fn hold(mut near: TcpStream, mut far: TcpStream, holds: watch::Receiver<bool>) {
    let (mut said, mut answered) = (Vec::new(), Vec::new());
    let (mut client, mut server) = ([0; 1024], [0; 1024]);
    loop {
        tokio::select! {
            read = near.read(&mut client) => match read.unwrap() {
                0 => break,
                bytes if *holds.borrow() => {
                    said.extend_from_slice(&client[..bytes]);
                    near.write_all(&std::mem::take(&mut answered)).await.unwrap();
                }
                bytes => far.write_all(&client[..bytes]).await.unwrap(),
            },
            read = far.read(&mut server) => match read.unwrap() {
                0 => break,
                bytes if *holds.borrow() && said.is_empty() => {
                    answered.extend_from_slice(&server[..bytes]);
                }
                bytes => near.write_all(&server[..bytes]).await.unwrap(),
            },
        }
    }
    // The server may have gone without waiting for it.
    let _ = far.write_all(&said).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_crosses_the_farewell_goes_out_again_and_runs_once() {
    let patient = Limits { dead_after: Duration::from_secs(60), ..Limits::default() };
    let limits = Limits { idle_after: Duration::from_millis(100), ..patient.clone() };
    let Server { plane: server, mut instance, starts, _binding } = server(8, limits).await;
    let holds = watch::Sender::new(false);
    let (at, _relay) = relay(server.address().unwrap(), holds.subscribe()).await;
    instance.address = Address(format!("tcp:{at}"));
    let config = TcpConfig::default().with_limits(patient);
    let caller = TcpRequestPlane::start(config).await.unwrap();
    let engine = caller.dial(&instance).await.unwrap().engine::<u32, u32>().unwrap();
    let mut answer = Engine::generate(&engine, Context::new(), 7).await.unwrap();
    holds.send_replace(true);
    while answer.next().await.is_some() {}
    let answer = Engine::generate(&engine, Context::new(), 8).await.unwrap();
    assert_eq!(answer.collect().await.unwrap(), [8]);
    assert_eq!(caller.stats().connections_total, 2);
    caller.shutdown().await;
    server.shutdown().await;
    assert_eq!(starts.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_drip_their_hello_take_no_place_and_are_given_up() {
    let Server { plane: server, instance, _binding, .. } = server(2, Limits::default()).await;
    let mut drippers = JoinSet::new();
    let mut hello = BytesMut::new();
    Session::client(Limits::default(), Codec::default(), tokio::time::Instant::now().into_std())
        .transmit(&mut hello, 1 << 10);
    for _ in 0..20 {
        let mut socket = TcpStream::connect(server.address().unwrap()).await.unwrap();
        let hello = hello.clone();
        drippers.spawn(async move {
            let mut said = 0;
            let mut heard = [0; 1];
            // All but the last byte: thirteen seconds.
            for byte in &hello[..hello.len() - 1] {
                let ends = socket.read(&mut heard);
                match tokio::time::timeout(Duration::from_millis(500), ends).await {
                    Ok(read) => {
                        assert!(!matches!(read, Ok(1..)), "nobody answers half a hello");
                        return said;
                    }
                    Err(_) if socket.write_all(&[*byte]).await.is_ok() => {}
                    Err(_) => return said,
                }
                said += 1;
            }
            said
        });
    }
    assert_eq!(asks(&caller().await, &instance).await.unwrap(), [7]);
    let said = drippers.join_all().await;
    assert!(said.iter().all(|said| *said < hello.len() - 1), "{said:?}");
    assert_eq!(server.stats().connections_total, 1);
}
