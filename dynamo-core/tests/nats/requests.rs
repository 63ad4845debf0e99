//! Requests over a real NATS: streams are whole and run once, whatever becomes of NATS meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dynamo_core::discovery::{Address, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{
    NatsRequestPlane, NatsRequestPlaneConfig, RequestPlane, conformance,
};
use dynamo_core::wire::link::{self, Datagram, Link};
use dynamo_core::wire::session::{self, Session};
use dynamo_core::{
    Client, Context, Endpoint, Engine, ErrorKind, Instance, Message, ResponseStream, Runtime,
    engine_fn,
};
use futures::{StreamExt, stream};
use tokio::runtime::Handle;

use crate::server::Server;

async fn plane(server: &Server) -> Arc<NatsRequestPlane> {
    Arc::new(NatsRequestPlane::start(NatsRequestPlaneConfig::new(server.url())).await.unwrap())
}

/// A plane that gives nobody up for silence, however long a busy machine takes.
async fn patient(server: &Server) -> Arc<NatsRequestPlane> {
    let config = NatsRequestPlaneConfig::new(server.url());
    let mut limits = config.limits.clone();
    limits.dead_after = Duration::from_secs(3600);
    Arc::new(NatsRequestPlane::start(config.with_limits(limits)).await.unwrap())
}

/// A process of its own, as far as requests are concerned; all share a directory.
fn runtime(discovery: &Arc<MemoryDiscovery>, plane: &Arc<NatsRequestPlane>) -> Runtime {
    let discovery = Arc::<MemoryDiscovery>::clone(discovery);
    let plane = Arc::<NatsRequestPlane>::clone(plane);
    Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
}

fn endpoint<Req: Message, Resp: Message>(runtime: &Runtime) -> Endpoint<Req, Resp> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("happens soon")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_plane_conforms() {
    let Some(server) = Server::start() else { return };
    conformance::run(async || runtime(&Arc::default(), &plane(&server).await)).await;
}

/// Counts to `n` in steps that take their time, and notes which request was started how often.
fn counting(
    starts: &Arc<Mutex<HashMap<String, usize>>>,
) -> impl Engine<Request = u32, Response = u32> {
    let starts = Arc::clone(starts);
    engine_fn(move |ctx: Context, count: u32| {
        *starts.lock().unwrap().entry(ctx.id().as_str().to_owned()).or_default() += 1;
        async move {
            let items = stream::iter(0..count).then(|item| async move {
                // Streams that are longer than an outage.
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(item)
            });
            Ok(ResponseStream::new(&ctx, items))
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_whole_and_run_once_though_nats_is_killed_and_freezes() {
    const STREAMS: usize = 32;
    const ITEMS: u32 = 400;
    let Some(mut server) = Server::start() else { return };
    let (ours, theirs) = (patient(&server).await, patient(&server).await);
    let discovery = Arc::default();
    let (serves, calls) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let starts = Arc::default();
    let serving = endpoint(&serves).serve(counting(&starts)).await.unwrap();
    let client: Client<u32, u32> = endpoint(&calls).client().await.unwrap();
    client.wait_ready(Duration::from_secs(20)).await.unwrap();
    // As long as there is trouble, there is load: one stream after another, in so many turns.
    let is_over = AtomicBool::new(false);
    let load = stream::iter(0..STREAMS).map(|_| async {
        let mut whole = 0;
        while !is_over.load(Ordering::Relaxed) {
            let stream = client.generate(Context::new(), ITEMS).await.unwrap();
            let items = stream.collect().await.unwrap();
            assert!(items.into_iter().eq(0..ITEMS));
            whole += 1;
        }
        whole
    });
    let trouble = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            server.kill();
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.restart();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.signal("-STOP");
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.signal("-CONT");
        is_over.store(true, Ordering::Relaxed);
    };
    let load = load.buffer_unordered(STREAMS).collect::<Vec<usize>>();
    let ((), whole) =
        tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(trouble, load) })
            .await
            .unwrap();
    let starts = starts.lock().unwrap();
    assert_eq!(starts.len(), whole.iter().sum::<usize>());
    assert!(whole.iter().all(|whole| *whole > 0), "{whole:?}");
    assert!(starts.values().all(|count| *count == 1), "{starts:?}");
    let (serves, calls) = (ours.stats(), theirs.stats());
    assert_eq!((serves.links_total, calls.links_total), (1, 1), "one link outlives it all");
    assert!(serves.repeats_total > 0, "something was lost and sent again: {serves:?}");
    assert_eq!(serving.inflight(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_larger_than_nats_takes_cross_in_whole_and_hold_up_no_others() {
    let Some(server) = Server::start() else { return };
    let (ours, theirs) = (plane(&server).await, plane(&server).await);
    let discovery = Arc::default();
    let (serves, calls) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let echo = engine_fn(|ctx: Context, bytes: Vec<u8>| async move {
        Ok(ResponseStream::from_items(&ctx, [bytes.clone(), bytes]))
    });
    let _serving = endpoint(&serves).serve(echo).await.unwrap();
    let client: Client<Vec<u8>, Vec<u8>> = endpoint(&calls).client().await.unwrap();
    let large: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let sizes = [8 << 20, 3 << 20, 10, 1 << 20, 1];
    let answers = stream::iter(sizes).map(|len| {
        let (client, request) = (&client, large[..len].to_vec());
        async move {
            let answer = async { client.generate(Context::new(), request).await?.collect().await };
            (len, answer.await)
        }
    });
    // In the order in which they are complete.
    let answers: Vec<_> = soon(answers.buffer_unordered(sizes.len()).collect()).await;
    for (len, answer) in &answers {
        let answer: &Vec<_> = answer.as_ref().unwrap();
        assert!(answer.len() == 2 && answer.iter().all(|bytes| *bytes == large[..*len]), "{len}");
    }
    let order: Vec<_> = answers.into_iter().map(|(len, _)| len).collect();
    let turn = |len| order.iter().position(|size| *size == len);
    // What was asked first is the largest, and is complete behind all that was asked after it.
    assert!(turn(10).max(turn(1)) < turn(1 << 20).min(turn(3 << 20)), "{order:?}");
    assert_eq!(turn(8 << 20), Some(sizes.len() - 1), "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_ends_its_streams_at_once_and_one_that_comes_back_is_called_again() {
    let Some(nats) = Server::start() else { return };
    let discovery = Arc::default();
    let theirs = plane(&nats).await;
    let calls = runtime(&discovery, &theirs);
    let client: Client<u32, u32> = endpoint(&calls).client().await.unwrap();
    for shuts_down in [true, false] {
        let ours = plane(&nats).await;
        let server = runtime(&discovery, &ours);
        let engine = engine_fn(|ctx: Context, _: u32| async move {
            let items = stream::once(async { Ok(1) }).chain(stream::pending());
            Ok(ResponseStream::<u32>::new(&ctx, items))
        });
        let serving = endpoint(&server).serve(engine).await.unwrap();
        client.wait_ready(Duration::from_secs(20)).await.unwrap();
        let mut stream = client.generate(Context::new(), 0).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let instance = serving.instance().clone();
        if shuts_down {
            // The plane goes first, so that this is no orderly end of the instance.
            server.shutdown(Duration::from_secs(20)).await.unwrap();
        } else {
            drop((server, ours));
        }
        drop(serving);
        let error = soon(stream.next()).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
        let error = soon(theirs.dial(&instance)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
        let gone = async {
            while !client.instances().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        soon(gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_process_that_dies_kills_what_it_asked_for() {
    let Some(nats) = Server::start() else { return };
    let discovery = Arc::default();
    let (ours, theirs) = (plane(&nats).await, plane(&nats).await);
    let (server, caller) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
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
    soon(idle).await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_link_ends_and_the_next_request_makes_another() {
    const ENDS: u64 = 3;
    const CROSSINGS: u64 = 10;
    let Some(nats) = Server::start() else { return };
    let config = NatsRequestPlaneConfig::new(nats.url());
    let mut limits = config.limits.clone();
    limits.idle_after = Duration::from_millis(50);
    let ours = Arc::new(NatsRequestPlane::start(config.with_limits(limits)).await.unwrap());
    let (theirs, discovery) = (plane(&nats).await, Arc::default());
    let (serves, calls) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let starts = Arc::default();
    let serving = endpoint(&serves).serve(counting(&starts)).await.unwrap();
    // Each end of a link is a task.
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let no_link = tasks();
    let engine = theirs.dial(serving.instance()).await.unwrap().engine::<u32, u32>().unwrap();
    let ask = async || {
        let answer = Engine::generate(&engine, Context::new(), 3).await.unwrap();
        assert_eq!(answer.collect().await.unwrap(), [0, 1, 2]);
    };
    for links in 1..=ENDS {
        ask().await;
        assert_eq!(theirs.stats().links_total, links);
        let ended = async {
            while tasks() > no_link {
                tokio::task::yield_now().await;
            }
        };
        soon(ended).await;
    }
    // Asked as soon as the server says something on its own: that it leaves, if it is no
    // acknowledgement. What is asked crosses that.
    for _ in 0..CROSSINGS {
        ask().await;
        let said = ours.stats().datagrams_total;
        let says = async {
            while ours.stats().datagrams_total == said {
                tokio::task::yield_now().await;
            }
        };
        soon(says).await;
    }
    assert!(theirs.stats().links_total > ENDS + 1, "nobody left while others asked");
    let starts: &Mutex<HashMap<String, usize>> = &starts;
    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts.len() as u64, ENDS + CROSSINGS);
    assert!(starts.values().all(|count| *count == 1), "{starts:?}");
    drop(calls);
}

/// A process that speaks to planes as it likes.
struct Stranger {
    client: async_nats::Client,
    process: u64,
}

impl Stranger {
    async fn new(server: &Server) -> Self {
        let client = async_nats::connect(server.url()).await.unwrap();
        Self { client, process: 0x5eed }
    }

    fn subject(&self) -> String {
        format!("dynamo.requests.{:016x}", self.process)
    }

    async fn listen(&self) -> async_nats::Subscriber {
        let messages = self.client.subscribe(self.subject()).await.unwrap();
        self.client.flush().await.unwrap();
        messages
    }

    /// Says something to a plane, as `link`.
    async fn say(&self, to: String, link: u64, bytes: Bytes) {
        let reply = format!("{}.{link:016x}", self.subject());
        self.client.publish_with_reply(to, reply, bytes).await.unwrap();
    }

    fn instance(&self) -> Instance {
        let name = |name| Name::new(name).unwrap();
        Instance {
            id: InstanceId(1),
            incarnation: 0,
            endpoint: EndpointPath {
                namespace: name("n"),
                component: name("c"),
                endpoint: name("e"),
            },
            address: Address(format!("nats:{}", self.subject())),
            labels: BTreeMap::new(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_speak_the_protocol_is_refused_and_the_server_goes_on() {
    let Some(nats) = Server::start() else { return };
    let (ours, theirs) = (plane(&nats).await, plane(&nats).await);
    let discovery = Arc::default();
    let (serves, calls) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let _serving = endpoint(&serves).serve(counting(&Arc::default())).await.unwrap();
    let stranger = Stranger::new(&nats).await;
    let mut heard = stranger.listen().await;
    let (to, open) = (ours.subject(), |from| Datagram::Open { from }.encode());
    for garbage in [&b""[..], b"\xff", b"GET / HTTP/1.1\r\n\r\n", &[2; 1 << 20]] {
        stranger.client.publish(to.clone(), garbage.into()).await.unwrap();
        stranger.say(to.clone(), 1, Bytes::from_static(garbage)).await;
    }
    // Who asks for a link without saying where it is, or in the name of another, gets none.
    stranger.client.publish(to.clone(), open(1)).await.unwrap();
    stranger.client.publish_with_reply(to.clone(), "$SYS.x", open(1)).await.unwrap();
    stranger.say(to.clone(), 2, open(1)).await;
    // Who speaks to a link that is not there is told, of whatever sense it would be there.
    let lost = Datagram::Data { to: 77, number: 0, taken: 0, bytes: Bytes::from_static(b"x") };
    stranger.say(to.clone(), 3, lost.encode()).await;
    let mut refused = Vec::new();
    while refused.last() != Some(&Datagram::Closed { to: 3, from: 77 }) {
        refused.push(Datagram::decode(soon(heard.next()).await.unwrap().payload).unwrap());
    }
    // The largest garbage was data, of a link that is not there either.
    let nowhere = Datagram::Closed { to: 1, from: 0x0202_0202_0202_0202 };
    assert_eq!(refused, [nowhere, Datagram::Closed { to: 3, from: 77 }]);

    // A link that carries no session ends, and that tells the peer.
    stranger.say(to.clone(), 4, open(4)).await;
    let opened = Datagram::decode(soon(heard.next()).await.unwrap().payload).unwrap();
    let Datagram::Opened { to: 4, from: link } = opened else { unreachable!("{opened:?}") };
    let bytes = Bytes::from_static(&[0xff; 64]);
    let garbage = Datagram::Data { to: link, number: 0, taken: 0, bytes };
    stranger.say(to.clone(), 4, garbage.encode()).await;
    loop {
        let said = Datagram::decode(soon(heard.next()).await.unwrap().payload).unwrap();
        if said == (Datagram::Closed { to: 4, from: link }) {
            break;
        }
    }

    let client: Client<u32, u32> = endpoint(&calls).client().await.unwrap();
    client.wait_ready(Duration::from_secs(20)).await.unwrap();
    let stream = client.generate(Context::new(), 3).await.unwrap();
    assert_eq!(soon(stream.collect()).await.unwrap(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_beyond_the_limit_are_refused() {
    let Some(nats) = Server::start() else { return };
    // Strangers who say no more stay until the last one has come.
    let ours = patient(&nats).await;
    let stranger = Stranger::new(&nats).await;
    let mut heard = stranger.listen().await;
    let (mut opened, mut refused) = (0, 0);
    for from in 1..=1100 {
        stranger.say(ours.subject(), from, Datagram::Open { from }.encode()).await;
        loop {
            let said = Datagram::decode(soon(heard.next()).await.unwrap().payload).unwrap();
            match said {
                Datagram::Opened { to, .. } if to == from => opened += 1,
                Datagram::Closed { to, from: 0 } if to == from => refused += 1,
                // The greeting of a session.
                _ => continue,
            }
            break;
        }
    }
    assert_eq!((opened, refused), (1024, 76));
    assert_eq!(ours.stats().links_total, 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_vanishes_without_a_word_is_noticed_because_nobody_listens_there() {
    let Some(nats) = Server::start() else { return };
    // Silence alone would take far too long.
    let ours = patient(&nats).await;
    let stranger = Stranger::new(&nats).await;
    let mut heard = stranger.listen().await;
    let instance = stranger.instance();
    let dialled = ours.dial(&instance);
    let answers = async {
        // As much of a server as it takes to be dialled.
        let asked = soon(heard.next()).await.unwrap();
        let Datagram::Open { from } = Datagram::decode(asked.payload).unwrap() else {
            unreachable!("not asked for a link")
        };
        let now = tokio::time::Instant::now().into_std();
        let mut link = Link::accept(9, from, link::Limits::default(), now);
        let mut hello = BytesMut::new();
        Session::server(session::Limits::default(), now).transmit(&mut hello, 1000);
        assert_eq!(link.send(&hello, now), hello.len());
        while let Some(next) = link.transmit(now) {
            stranger.say(ours.subject(), 9, next.bytes).await;
        }
    };
    let (dialled, ()) = tokio::join!(dialled, answers);
    let engine = dialled.unwrap().engine::<u32, u32>().unwrap();
    let call = Engine::generate(&engine, Context::new(), 0);
    drop(heard);
    let error = soon(call).await.map(|_: ResponseStream<u32>| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("nobody listens"), "{error}");
    // Nor can it be dialled anew, and then nothing has started.
    let error = soon(ours.dial(&instance)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    for bad in
        ["memory:x", "nats:", "nats:other.requests.0000000000000001", "nats:dynamo.requests.>"]
    {
        let instance = Instance { address: Address(bad.to_owned()), ..instance.clone() };
        assert_eq!(ours.dial(&instance).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
