//! TLS between planes: who is let in, for whom a peer may answer, and what becomes of the others.
#![cfg(feature = "tls")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod authority;
mod reload;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use authority::{Authority, Folder, Issued};
use dynamo_core::discovery::{Address, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{
    Ingress, Pem, RequestPlane, TcpConfig, TcpRequestPlane, TlsConfig, conformance,
};
use dynamo_core::{
    Context, Engine, Error, ErrorKind, Instance, ResponseStream, Runtime, SharedEngine, engine_fn,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn tls(authority: &Authority, issued: &Issued) -> TlsConfig {
    let (chain, key) = (Pem::bytes(issued.chain.clone()), Pem::bytes(issued.key.clone()));
    TlsConfig::new(Name::new("blue").unwrap(), authority.roots()).with_certificate(chain, key)
}

async fn server(tls: TlsConfig) -> TcpRequestPlane {
    start(TcpConfig::default().with_listen(loopback()).with_tls(tls)).await
}

async fn caller(tls: TlsConfig) -> TcpRequestPlane {
    start(TcpConfig::default().with_tls(tls)).await
}

async fn start(config: TcpConfig) -> TcpRequestPlane {
    TcpRequestPlane::start(config).await.unwrap()
}

/// Instance 1 of an endpoint of `component` at `address`: what discovery claims.
fn instance(component: &str, address: impl Into<String>) -> Instance {
    let name = |name| Name::new(name).unwrap();
    let endpoint =
        EndpointPath { namespace: name("n"), component: name(component), endpoint: name("e") };
    let (id, address) = (InstanceId(1), Address(address.into()));
    Instance { id, incarnation: 0, endpoint, address, labels: BTreeMap::new() }
}

fn at(server: &TcpRequestPlane) -> String {
    format!("tls:{}", server.address().unwrap())
}

/// Answers with the numbers below the one asked for.
fn counting() -> Ingress {
    let engine: SharedEngine<u32, u32> =
        Arc::new(engine_fn(|ctx: Context, count: u32| async move {
            Ok(ResponseStream::from_items(&ctx, 0..count))
        }));
    Ingress::new(engine)
}

async fn call(plane: &TcpRequestPlane, instance: &Instance) -> Result<Vec<u32>, Error> {
    let engine = plane.dial(instance).await?.engine::<u32, u32>()?;
    engine.generate(Context::new(), 3).await?.collect().await
}

/// Dials, and returns why that fails, with all its causes.
async fn refused(plane: &TcpRequestPlane, instance: &Instance) -> (ErrorKind, String) {
    let dialled = tokio::time::timeout(Duration::from_secs(20), plane.dial(instance));
    let error = dialled.await.expect("an answer in time").unwrap_err();
    assert!(error.is_retryable(), "nothing was started: {error}");
    let (kind, mut said) = (error.kind(), error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}; {cause}");
        source = cause.source();
    }
    (kind, said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tcp_plane_with_tls_conforms() {
    let authority = Authority::new("root");
    let issued = authority.issue(&["dyn://blue/n/c"]);
    conformance::run(async || {
        let plane = Arc::new(server(tls(&authority, &issued)).await);
        Runtime::new(Arc::<MemoryDiscovery>::default(), plane, Arc::<MemoryEventPlane>::default())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_tokens_share_their_writes_and_none_is_held_back() {
    const STREAMS: usize = 64;
    const TOKENS: u32 = 200;
    let authority = Authority::new("root");
    let config = tls(&authority, &authority.issue(&["dyn://blue/n/c"]));
    let (server, caller) = (server(config.clone()).await, caller(config).await);
    let instance = instance("c", at(&server));
    let _binding = server.bind(&instance.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    let engine = caller.dial(&instance).await.unwrap().engine::<u32, u32>().unwrap();
    let streams = (0..STREAMS).map(|_| async {
        engine.generate(Context::new(), TOKENS).await.unwrap().collect().await.unwrap().len()
    });
    assert_eq!(futures::future::join_all(streams).await, [TOKENS as usize; STREAMS]);
    let (stats, tokens) = (server.stats(), STREAMS as u64 * u64::from(TOKENS));
    assert_eq!(stats.connections_total, 1);
    assert!(stats.writes_total * 10 <= tokens, "{stats:?} for {tokens} tokens");
    assert!(stats.written_bytes_total >= tokens, "{stats:?} for {tokens} tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_of_another_authority_or_cluster_is_refused_by_either_side() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = ours.issue(&["dyn://blue/n/c"]);
    let server = server(tls(&ours, &good)).await;
    let instance = instance("c", at(&server));
    let _binding = server.bind(&instance.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    assert_eq!(call(&caller(tls(&ours, &good)).await, &instance).await.unwrap(), [0, 1, 2]);

    // The caller does not trust the server.
    let stranger = caller(tls(&theirs, &theirs.issue(&["dyn://blue/n/c"]))).await;
    let (kind, said) = refused(&stranger, &instance).await;
    assert!(kind == ErrorKind::Unavailable && said.contains("UnknownIssuer"), "{said}");

    // The server does not trust the caller, who trusts both.
    let shown = theirs.issue(&["dyn://blue/n/c"]);
    let both = Pem::bytes(ours.pem.clone() + &theirs.pem);
    let config = TlsConfig::new(Name::new("blue").unwrap(), both)
        .with_certificate(Pem::bytes(shown.chain), Pem::bytes(shown.key));
    let (kind, said) = refused(&caller(config).await, &instance).await;
    assert!(kind == ErrorKind::Unavailable && said.contains("UnknownCA"), "{said}");

    // Of another cluster, by the same authority.
    let green = ours.issue(&["dyn://green/n/c"]);
    let mut config = tls(&ours, &green);
    config.cluster = Name::new("green").unwrap();
    let green = caller(config).await;
    let (_, said) = refused(&green, &instance).await;
    assert!(said.contains("dyn://blue/n/c, nobody of cluster green"), "{said}");
    assert_eq!(server.stats().connections_total, 1, "nobody else came through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_answers_for_its_component_and_its_instance_and_no_other() {
    let authority = Authority::new("root");
    let caller = caller(tls(&authority, &authority.issue(&["dyn://blue/n/caller"]))).await;
    let issued = authority.issue(&["dyn://blue/n/a", "dyn://blue/n/b/2", "dyn://green/n/c"]);
    let server = server(tls(&authority, &issued)).await;
    let a = instance("a", at(&server));
    let _a = server.bind(&a.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    assert_eq!(call(&caller, &a).await.unwrap(), [0, 1, 2]);

    // One that discovery claims to be at the same address, over the same connection.
    for component in ["b", "c", "a2"] {
        let claimed = instance(component, at(&server));
        let (kind, said) = refused(&caller, &claimed).await;
        assert_eq!(kind, ErrorKind::Unavailable, "{said}");
        assert!(said.contains("dyn://blue/n/a"), "{said}");
        assert!(said.contains(&format!("not instance 1 of n/{component}/e")), "{said}");
        let bound = server.bind(&claimed.endpoint, (InstanceId(1), 0), counting()).await;
        assert_eq!(bound.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let mut second = instance("b", at(&server));
    second.id = InstanceId(2);
    let _b = server.bind(&second.endpoint, (InstanceId(2), 0), counting()).await.unwrap();
    assert_eq!(call(&caller, &second).await.unwrap(), [0, 1, 2]);
    assert_eq!(call(&caller, &a).await.unwrap(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_needs_the_servers_word() {
    let authority = Authority::new("root");
    let config = tls(&authority, &authority.issue(&["dyn://blue/n/c"]));
    let anonymous = TlsConfig::new(Name::new("blue").unwrap(), authority.roots());
    let caller = caller(anonymous).await;
    let strict = server(config.clone()).await;
    let (kind, said) = refused(&caller, &instance("c", at(&strict))).await;
    assert!(kind == ErrorKind::Unavailable && said.contains("CertificateRequired"), "{said}");

    let open = server(config.with_anonymous_clients_allowed()).await;
    let instance = instance("c", at(&open));
    let _binding = open.bind(&instance.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    assert_eq!(call(&caller, &instance).await.unwrap(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_at_one_end_only_fails_in_time_and_says_so() {
    let authority = Authority::new("root");
    let config = tls(&authority, &authority.issue(&["dyn://blue/n/c"]));
    let encrypted = server(config.clone()).await;
    let plain = start(TcpConfig::default().with_listen(loopback())).await;
    let silent = TcpListener::bind(loopback()).await.unwrap();
    let caller = caller(config).await;

    let to_plain = instance("c", format!("tls:{}", plain.address().unwrap()));
    let (kind, said) = refused(&caller, &to_plain).await;
    assert!(kind == ErrorKind::Unavailable && said.contains("the TLS handshake failed"), "{said}");
    let to_silent = instance("c", format!("tls:{}", silent.local_addr().unwrap()));
    let (kind, said) = refused(&caller, &to_silent).await;
    assert!(kind == ErrorKind::Unavailable && said.contains("no answer in 3s"), "{said}");
    let to_encrypted = instance("c", format!("tcp:{}", encrypted.address().unwrap()));
    for caller in [&plain, &caller] {
        let (kind, said) = refused(caller, &to_encrypted).await;
        assert_eq!(kind, ErrorKind::Unavailable);
        assert!(said.contains("refuses or speaks another protocol"), "{said}");
    }
    // What the address says already needs no connection.
    let (kind, said) = refused(&plain, &instance("c", at(&encrypted))).await;
    assert!(kind == ErrorKind::InvalidArgument && said.contains("has no TLS"), "{said}");
    let (kind, said) = refused(&caller, &instance("c", "tcp:192.0.2.1:1")).await;
    assert!(kind == ErrorKind::InvalidArgument && said.contains("plain text"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_nobody_out() {
    let authority = Authority::new("root");
    let config = tls(&authority, &authority.issue(&["dyn://blue/n/c"]));
    let server = server(config.clone()).await;
    let instance = instance("c", at(&server));
    let _binding = server.bind(&instance.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    let mut half_open = Vec::new();
    // More than are let wait at once; some say the beginning of a handshake.
    for n in 0..300 {
        let mut socket = TcpStream::connect(server.address().unwrap()).await.unwrap();
        if n % 2 == 0 {
            socket.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        half_open.push(socket);
    }
    assert_eq!(call(&caller(config).await, &instance).await.unwrap(), [0, 1, 2]);
    assert_eq!(server.stats().connections_total, 1);
    // Each is closed in the end.
    for mut socket in half_open {
        let mut said = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut said));
        let _ = closed.await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start_and_named() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = ours.issue(&["dyn://blue/n/c"]);
    let folder = Folder::new("bad");
    let with = |chain: &str, key: &str| {
        TlsConfig::new(Name::new("blue").unwrap(), ours.roots())
            .with_certificate(Pem::bytes(chain), Pem::bytes(key))
    };
    let of = |issued: Issued| with(&issued.chain, &issued.key);
    let mut no_roots = with(&good.chain, &good.key);
    no_roots.roots = Pem::bytes("");
    let mut no_file = with(&good.chain, &good.key);
    no_file.roots = Pem::file(folder.path("nowhere.pem"));
    let cases = [
        (no_roots, "trusted roots"),
        (no_file, "nowhere.pem"),
        (with("", &good.key), "certificate chain"),
        (with(&good.chain, "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----"), "key"),
        (with(&good.chain, &good.chain), "private key"),
        (with(&good.chain, &ours.issue(&["dyn://blue/n/c"]).key), "does not fit"),
        (of(theirs.issue(&["dyn://blue/n/c"])), "UnknownIssuer"),
        (of(ours.issue_until(2020, &["dyn://blue/n/c"])), "expired"),
        (of(ours.issue(&["dyn://green/n/c"])), "dyn://green/n/c, nobody of cluster blue"),
        (of(ours.issue(&["dyn://blue/n/c", "dyn://blue/n/*"])), "dyn://blue/n/*"),
        (of(ours.issue(&["https://blue/n/c"])), "nobody"),
        (TlsConfig::new(Name::new("blue").unwrap(), ours.roots()), "needs a certificate"),
    ];
    for (config, named) in cases {
        let config = TcpConfig::default().with_listen(loopback()).with_tls(config);
        let error = TcpRequestPlane::start(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{named}");
        assert!(error.message().contains(named), "{named}: {error}");
    }
    // With TLS, no word is needed to listen beyond the loopback.
    let config = TcpConfig::default().with_listen("0.0.0.0:0".parse().unwrap());
    let config = config.with_advertise(loopback()).with_tls(of(good));
    assert!(TcpRequestPlane::start(config).await.is_ok());
}
