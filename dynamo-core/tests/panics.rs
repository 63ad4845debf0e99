//! Messages and engines that panic: each fails one request, and touches nothing else.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dynamo_core::discovery::{Address, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{Ingress, RequestPlane, TcpConfig, TcpRequestPlane};
use dynamo_core::wire::codec::Codec;
use dynamo_core::{
    Client, Context, Endpoint, Engine, Error, ErrorKind, Instance, ResponseStream, Runtime,
    ServeOptions, SharedEngine, engine_fn,
};
use futures::{StreamExt, stream};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A number; some panic on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fuse(u32);

const UNWRITABLE: u32 = 13;
const UNREADABLE: u32 = 66;

impl Serialize for Fuse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_ne!(self.0, UNWRITABLE, "not to be written");
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for Fuse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        assert_ne!(number, UNREADABLE, "not to be read");
        Ok(Self(number))
    }
}

async fn plane(listens: bool) -> Arc<TcpRequestPlane> {
    let config = TcpConfig::default();
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = if listens { config.with_listen(listen) } else { config };
    Arc::new(TcpRequestPlane::start(config).await.unwrap())
}

/// A process of its own, as far as requests are concerned; all share a directory.
fn runtime(discovery: &Arc<MemoryDiscovery>, plane: &Arc<TcpRequestPlane>) -> Runtime {
    let (discovery, plane) = (Arc::clone(discovery), Arc::clone(plane));
    Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
}

fn endpoint(runtime: &Runtime) -> Endpoint<Fuse, Fuse> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("happens soon")
}

/// Tells whether a task of its own panics over `call`.
async fn panics(call: impl Future<Output = bool> + Send + 'static) -> bool {
    let mut tasks = JoinSet::new();
    tasks.spawn(call);
    soon(tasks.join_next()).await.unwrap().is_err_and(|error| error.is_panic())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_panics_on_its_way_is_one_failed_request_and_nothing_else() {
    let discovery = Arc::default();
    let (ours, theirs) = (plane(true).await, plane(false).await);
    let (server, caller) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let (guard, go) = (Arc::new(()), watch::Sender::new(false));
    let (held, is_go) = (Arc::clone(&guard), go.subscribe());
    // Answers 0 and the number asked for; a held one only once it is let go.
    let engine = engine_fn(move |ctx: Context, asked: Fuse| {
        let (guard, mut is_go) = (Arc::clone(&held), is_go.clone());
        async move {
            let second = stream::once(async move {
                if asked.0 == HELD {
                    is_go.wait_for(|is_go| *is_go).await.unwrap();
                }
                Ok(Fuse(if asked.0 == WRITES_BADLY { UNWRITABLE } else { asked.0 }))
            });
            let items = stream::iter([Ok(Fuse(0))]).chain(second);
            Ok(ResponseStream::new(&ctx, items).with_guard(guard))
        }
    });
    // One place beside the held request: what failed has given its own back.
    let options = ServeOptions::default().with_inflight_max(2).with_waiting_max(1);
    let serving = endpoint(&server).serve_with(engine, options).await.unwrap();
    let client: Client<Fuse, Fuse> = endpoint(&caller).client().await.unwrap();
    let mut bystander = client.generate(Context::new(), Fuse(HELD)).await.unwrap();
    assert_eq!(bystander.next().await.unwrap().unwrap(), Fuse(0));
    for _ in 0..3 {
        // At the server, as it reads the request.
        let error = soon(client.generate(Context::new(), Fuse(UNREADABLE))).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Internal, false));
        assert!(error.message().contains("not to be read"), "{error}");
        // At the server, as it writes an item.
        let mut answer = client.generate(Context::new(), Fuse(WRITES_BADLY)).await.unwrap();
        assert_eq!(soon(answer.next()).await.unwrap().unwrap(), Fuse(0));
        let error = soon(answer.next()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("not to be written"), "{error}");
        assert!(answer.next().await.is_none());
        // At the caller, as it writes the request: its own panic.
        let own = client.clone();
        let call = async move { own.generate(Context::new(), Fuse(UNWRITABLE)).await.is_ok() };
        assert!(panics(call).await);
        let answer = client.generate(Context::new(), Fuse(7)).await.unwrap();
        assert_eq!(soon(answer.collect()).await.unwrap(), [Fuse(0), Fuse(7)]);
    }
    go.send_replace(true);
    assert_eq!(soon(bystander.next()).await.unwrap().unwrap(), Fuse(HELD));
    assert!(soon(bystander.next()).await.is_none());
    let idle = async {
        while serving.inflight() > 0 || Arc::strong_count(&guard) > 2 {
            tokio::task::yield_now().await;
        }
    };
    soon(idle).await;
    assert_eq!(theirs.stats().connections_total, 1, "the connection outlives it all");
}

/// Requests that the engine has its own way with.
const HELD: u32 = 1;
const WRITES_BADLY: u32 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_panics_as_it_reads_an_answer_ends_that_one_and_the_connection_lives() {
    let discovery = Arc::default();
    let (ours, theirs) = (plane(true).await, plane(false).await);
    let (server, caller) = (runtime(&discovery, &ours), runtime(&discovery, &theirs));
    let engine = engine_fn(|ctx: Context, asked: Fuse| async move {
        let bad = Fuse(if asked.0 == HELD { UNREADABLE } else { asked.0 });
        let items = stream::iter([Ok(Fuse(0)), Ok(bad)]);
        // Without an end of its own as long as it is held.
        let rest = stream::pending().take(usize::from(asked.0 == HELD));
        Ok(ResponseStream::new(&ctx, items.chain(rest)))
    });
    let serving = endpoint(&server).serve(engine).await.unwrap();
    let client: Client<Fuse, Fuse> = endpoint(&caller).client().await.unwrap();
    for _ in 0..3 {
        let own = client.clone();
        let call = async move {
            own.generate(Context::new(), Fuse(HELD)).await.unwrap().collect().await.is_ok()
        };
        assert!(panics(call).await);
        let answer = client.generate(Context::new(), Fuse(7)).await.unwrap();
        assert_eq!(soon(answer.collect()).await.unwrap(), [Fuse(0), Fuse(7)]);
    }
    let idle = async {
        while serving.inflight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(idle).await;
    assert_eq!(theirs.stats().connections_total, 1, "the connection outlives it all");
}

/// Whatever is at fault, and wherever: here an entrance without the rules of a server around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_even_if_the_task_of_its_request_dies() {
    let (ours, theirs) = (plane(true).await, plane(false).await);
    let engine = engine_fn(|ctx: Context, request: Bytes| async move {
        assert_ne!(&request[..], b"start", "dies at the start");
        let items = stream::iter(0..2).map(|n| {
            assert_eq!(n, 0, "dies in mid-stream");
            Result::<_, Error>::Ok(Bytes::from_static(b"first"))
        });
        Ok(ResponseStream::new(&ctx, items))
    });
    let engine: SharedEngine<Bytes, Bytes> = Arc::new(engine);
    let name = |name| Name::new(name).unwrap();
    let path = EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
    let entrance = Ingress::remote(engine, Codec::default());
    let binding = ours.bind(&path, (InstanceId(1), 0), entrance).await.unwrap();
    let address = Address(binding.address().0.clone());
    let (id, labels) = (InstanceId(1), BTreeMap::new());
    let instance = Instance { id, incarnation: 0, endpoint: path, address, labels };
    let engine = theirs.dial(&instance).await.unwrap().engine::<Bytes, Bytes>().unwrap();
    for request in [&b"start"[..], b"stream"] {
        let call = Engine::generate(&engine, Context::new(), Bytes::from_static(request));
        let ends = async { call.await?.collect().await };
        let error = soon(ends).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Internal, false), "{error}");
    }
    assert_eq!(theirs.stats().connections_total, 1);
}
