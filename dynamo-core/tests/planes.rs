//! Every plane passes the suite; the memory plane knows types, the TCP plane fails in its own ways.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::GenerateChunk;
use dynamo_core::request_plane::{RequestPlane, TcpConfig, TcpRequestPlane, conformance};
use dynamo_core::{
    Client, Context, Engine, ErrorKind, ResponseStream, Runtime, ServeOptions, engine_fn,
};
use futures::{FutureExt, StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn the_memory_plane_conforms() {
    conformance::run(async || Runtime::in_process()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tcp_plane_conforms() {
    conformance::run(async || runtime(&Arc::default(), true).await).await;
}

#[cfg(feature = "json")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tcp_plane_conforms_with_messages_as_json() {
    use dynamo_core::wire::codec::Codec;
    conformance::run(async || {
        let config = TcpConfig::default().with_listen(loopback()).with_codec(Codec::Json);
        let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
        Runtime::new(Arc::<MemoryDiscovery>::default(), plane, Arc::<MemoryEventPlane>::default())
    })
    .await;
}

/// A process of its own, as far as requests are concerned; all share a directory.
async fn runtime(discovery: &Arc<MemoryDiscovery>, listens: bool) -> Runtime {
    let plane = Arc::new(plane(listens).await);
    let discovery = Arc::<MemoryDiscovery>::clone(discovery);
    Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
}

async fn plane(listens: bool) -> TcpRequestPlane {
    let config = TcpConfig::default();
    let config = if listens { config.with_listen(loopback()) } else { config };
    TcpRequestPlane::start(config).await.unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn endpoint<Req, Resp>(runtime: &Runtime) -> dynamo_core::Endpoint<Req, Resp>
where
    Req: dynamo_core::Message,
    Resp: dynamo_core::Message,
{
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

fn counting() -> impl Engine<Request = u32, Response = u32> {
    engine_fn(
        |ctx: Context, count: u32| async move { Ok(ResponseStream::from_items(&ctx, 0..count)) },
    )
}

#[tokio::test]
async fn a_client_of_other_types_is_told_both() {
    let runtime = Runtime::in_process();
    let _serving = endpoint::<u32, u32>(&runtime).serve(counting()).await.unwrap();
    let client: Client<String, u32> = endpoint(&runtime).client().await.unwrap();
    let error = client.generate(Context::new(), String::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("u32") && error.message().contains("String"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_its_patience_and_no_longer() {
    let runtime = Runtime::in_process();
    let hang = engine_fn(|ctx: Context, _: u32| async move {
        Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
    });
    let serving = endpoint(&runtime).serve(hang).await.unwrap();
    let client: Client<u32, u32> = endpoint(&runtime).client().await.unwrap();
    let _stream = client.generate(Context::new(), 0).await.unwrap();
    let before = tokio::time::Instant::now();
    serving.drain(Duration::from_secs(7)).await;
    assert_eq!(before.elapsed().as_secs(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_share_one_connection() {
    let discovery = Arc::<MemoryDiscovery>::default();
    let planes = [Arc::new(plane(true).await), Arc::new(plane(false).await)];
    let [server, caller] = planes.each_ref().map(|plane| {
        let (discovery, plane) = (Arc::clone(&discovery), Arc::<TcpRequestPlane>::clone(plane));
        Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
    });
    let _serving = endpoint(&server).serve(counting()).await.unwrap();
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..1000 {
        streams.push(client.generate(Context::new(), 50).await.unwrap());
    }
    assert_eq!(planes.each_ref().map(|plane| plane.stats().connections_total), [1, 1]);
    let counts = stream::iter(streams).map(ResponseStream::collect).buffer_unordered(1000);
    let counts: Vec<_> = counts.map(|items| items.unwrap().len()).collect().await;
    assert_eq!(counts, [50; 1000]);
    drop(client);
    for runtime in [server, caller] {
        runtime.shutdown(Duration::from_secs(20)).await.unwrap();
    }
}

/// Asks until it is refused; returns the streams that run, and the refusal.
async fn fill(client: &Client<u32, u32>) -> (Vec<ResponseStream<u32>>, dynamo_core::Error) {
    let mut running = Vec::new();
    loop {
        assert!(running.len() < 100);
        match client.generate(Context::new(), 0).await {
            Ok(stream) => running.push(stream),
            Err(error) => return (running, error),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_share_what_a_server_runs_at_once_as_they_come_and_go() {
    let discovery = Arc::<MemoryDiscovery>::default();
    let config = TcpConfig::default().with_listen(loopback()).with_requests_max(8);
    let nothing = config.clone().with_requests_max(0);
    let error = TcpRequestPlane::start(nothing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    let events = Arc::new(MemoryEventPlane::default());
    let server = Runtime::new(Arc::<MemoryDiscovery>::clone(&discovery), plane, events);
    let hangs = engine_fn(|ctx: Context, _: u32| async move {
        Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
    });
    let _serving = endpoint(&server).serve(hangs).await.unwrap();

    let one = runtime(&discovery, false).await;
    let first: Client<u32, u32> = endpoint(&one).client().await.unwrap();
    let (mut running, refused) = fill(&first).await;
    assert_eq!((running.len(), refused.kind()), (8, ErrorKind::Overloaded));
    assert!(refused.is_retryable());

    // Another one comes: half is its own, and what runs goes on.
    let two = runtime(&discovery, false).await;
    let second: Client<u32, u32> = endpoint(&two).client().await.unwrap();
    let (theirs, refused) = fill(&second).await;
    assert_eq!((theirs.len(), refused.kind()), (4, ErrorKind::Overloaded));
    running.truncate(4);
    let refused = first.generate(Context::new(), 0).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    for stream in &mut running {
        assert!(stream.next().now_or_never().is_none(), "it goes on");
    }

    // It leaves, and the first one has all again.
    drop((theirs, second));
    two.shutdown(Duration::from_secs(20)).await.unwrap();
    let all = async {
        while running.len() < 8 {
            running.extend(fill(&first).await.0);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    assert_eq!(running.len(), 8);
    drop((running, first));
    for runtime in [server, one] {
        runtime.shutdown(Duration::from_secs(20)).await.unwrap();
    }
}

/// What a token costs on the wire, counted: bytes, calls that write, connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_many_streams_share_their_writes() {
    const STREAMS: usize = 256;
    const TOKENS: u32 = 200;
    let discovery = Arc::<MemoryDiscovery>::default();
    let plane = Arc::new(plane(true).await);
    let server = Runtime::new(
        Arc::<MemoryDiscovery>::clone(&discovery),
        Arc::<TcpRequestPlane>::clone(&plane),
        Arc::new(MemoryEventPlane::default()),
    );
    let token = |token_ids: Vec<u32>| GenerateChunk { token_ids, ..GenerateChunk::default() };
    let engine = engine_fn(move |ctx: Context, count: u32| async move {
        let tokens = stream::iter(0..count).map(move |n| Ok(token(vec![40_000 + n % 9000])));
        Ok(ResponseStream::new(&ctx, tokens))
    });
    let _serving = endpoint(&server).serve(engine).await.unwrap();
    let caller = runtime(&discovery, false).await;
    let client: Client<u32, GenerateChunk> = endpoint(&caller).client().await.unwrap();
    let streams = stream::iter(0..STREAMS).map(|_| async {
        client.generate(Context::new(), TOKENS).await.unwrap().collect().await.unwrap().len()
    });
    let counts: Vec<_> = streams.buffer_unordered(STREAMS).collect().await;
    assert_eq!(counts, [TOKENS as usize; STREAMS]);
    let stats = plane.stats();
    let tokens = STREAMS as u64 * u64::from(TOKENS);
    assert_eq!(stats.connections_total, 1);
    assert!(stats.writes_total * 10 <= tokens, "{stats:?} for {tokens} tokens");
    // Besides the tokens, each stream is accepted and ended, and each connection greeted; a machine
    // that is busy elsewhere for a second makes either side ask for a sign of life.
    let bytes = stats.written_bytes_total - STREAMS as u64 * (8 + 16) - 27;
    let signs_of_life = 16 * 16;
    // What is ready together shares a frame.
    assert!(bytes <= tokens * 10 + signs_of_life, "{stats:?} for {tokens} tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_ends_its_streams_and_one_that_comes_back_is_called_again() {
    let discovery = Arc::default();
    let caller = runtime(&discovery, false).await;
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    for _ in 0..3 {
        let server = runtime(&discovery, true).await;
        let engine = engine_fn(|ctx: Context, _: u32| async move {
            let items = stream::once(async { Ok(1) }).chain(stream::pending());
            Ok(ResponseStream::<u32>::new(&ctx, items))
        });
        let serving = endpoint(&server).serve(engine).await.unwrap();
        client.wait_ready(Duration::from_secs(20)).await.unwrap();
        let mut stream = client.generate(Context::new(), 0).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        // The plane goes first, so that this is no orderly end of the instance.
        server.shutdown(Duration::from_secs(20)).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
        let error = client.generate(Context::new(), 0).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
        drop(serving);
        let gone = async {
            while !client.instances().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_process_that_dies_kills_what_it_asked_for() {
    let discovery = Arc::default();
    let (server, caller) = (runtime(&discovery, true).await, runtime(&discovery, false).await);
    let engine = engine_fn(|ctx: Context, _: u32| async move {
        Ok(ResponseStream::<u32>::new(&ctx, stream::pending()))
    });
    let serving = endpoint(&server).serve(engine).await.unwrap();
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    let stream = client.generate(Context::new(), 0).await.unwrap();
    assert_eq!(serving.inflight(), 1);
    caller.request_plane().shutdown().await;
    let idle = async {
        while serving.inflight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), idle).await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn whoever_does_not_speak_the_protocol_is_cut_off_and_the_server_goes_on() {
    let discovery = Arc::default();
    let plane = Arc::new(plane(true).await);
    let address = plane.address().unwrap();
    let server = Runtime::new(
        Arc::<MemoryDiscovery>::clone(&discovery),
        plane,
        Arc::new(MemoryEventPlane::default()),
    );
    let _serving = endpoint(&server).serve(counting()).await.unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[]] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        // Nothing at all is cut off as well, once the peer has been silent for long enough.
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut said));
        let _ = ended.await.unwrap();
    }
    let caller = runtime(&discovery, false).await;
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    let stream = client.generate(Context::new(), 3).await.unwrap();
    assert_eq!(stream.collect().await.unwrap(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greetings_that_never_end_keep_nobody_out() {
    let discovery = Arc::default();
    let plane = Arc::new(plane(true).await);
    let (address, stats) = (plane.address().unwrap(), Arc::clone(&plane));
    let server = Runtime::new(
        Arc::<MemoryDiscovery>::clone(&discovery),
        plane,
        Arc::new(MemoryEventPlane::default()),
    );
    let _serving = endpoint(&server).serve(counting()).await.unwrap();
    let mut half_open = Vec::new();
    // More than are let wait at once; some say the beginning of a hello.
    for n in 0..300 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            socket.write_all(&[19, 0, 0, 0, 0]).await.unwrap();
        }
        half_open.push(socket);
    }
    let caller = runtime(&discovery, false).await;
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    let stream = client.generate(Context::new(), 3).await.unwrap();
    assert_eq!(stream.collect().await.unwrap(), [0, 1, 2]);
    assert_eq!(stats.stats().connections_total, 1, "nobody else came through");
    // Each is closed in the end.
    for mut socket in half_open {
        let mut said = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut said));
        let _ = closed.await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_is_silent_or_speaks_otherwise_is_unreachable_in_time() {
    let silent = TcpListener::bind(loopback()).await.unwrap();
    let plane = plane(false).await;
    let name = |name| dynamo_core::name::Name::new(name).unwrap();
    let instance = |address: String| dynamo_core::Instance {
        id: dynamo_core::protocol::InstanceId(1),
        incarnation: 0,
        endpoint: dynamo_core::name::EndpointPath {
            namespace: name("n"),
            component: name("c"),
            endpoint: name("e"),
        },
        address: dynamo_core::discovery::Address(address),
        labels: std::collections::BTreeMap::new(),
    };
    let address = silent.local_addr().unwrap();
    let error = plane.dial(&instance(format!("tcp:{address}"))).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    drop(silent);
    let error = plane.dial(&instance(format!("tcp:{address}"))).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    for bad in ["memory:x", "tcp:", "tcp:host"] {
        let error = plane.dial(&instance(bad.to_owned())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
    }
}

#[tokio::test]
async fn addresses_that_nobody_reaches_or_that_need_a_word_are_refused() {
    let config = |listen: &str| TcpConfig::default().with_listen(listen.parse().unwrap());
    for bad in [
        config("0.0.0.0:0"),
        config("0.0.0.0:0").with_plaintext_allowed(),
        config("0.0.0.0:0").with_advertise(loopback()),
    ] {
        let error = TcpRequestPlane::start(bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let good = config("0.0.0.0:0").with_advertise(loopback()).with_plaintext_allowed();
    let plane = TcpRequestPlane::start(good).await.unwrap();
    assert!(plane.address().unwrap().port() != 0);
    let taken = TcpConfig::default().with_listen(plane.address().unwrap());
    assert_eq!(TcpRequestPlane::start(taken).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let caller = Runtime::new(
        Arc::<MemoryDiscovery>::default(),
        Arc::new(self::plane(false).await),
        Arc::new(MemoryEventPlane::default()),
    );
    let error =
        endpoint(&caller).serve_with(counting(), ServeOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// A graph may carry bytes that it does not look into: they are not copied into another form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_as_they_are() {
    let discovery = Arc::default();
    let (server, caller) = (runtime(&discovery, true).await, runtime(&discovery, false).await);
    let echo = engine_fn(|ctx: Context, bytes: bytes::Bytes| async move {
        Ok(ResponseStream::from_items(&ctx, [bytes]))
    });
    let _serving = endpoint(&server).serve(echo).await.unwrap();
    let client: Client<bytes::Bytes, bytes::Bytes> = endpoint(&caller).client().await.unwrap();
    let sent = bytes::Bytes::from(vec![0xa5; 100_000]);
    let got = client.generate(Context::new(), sent.clone()).await.unwrap().collect().await.unwrap();
    assert_eq!(got, [sent]);
}
