//! Certificates that change while streams flow.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::name::Name;
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{Ingress, Pem, RequestPlane, TcpRequestPlane, TlsConfig};
use dynamo_core::{Context, Engine, ErrorKind, ResponseSender, ResponseStream, engine_fn};
use tokio::sync::mpsc;

use super::authority::{Authority, Folder, replace};
use super::{at, call, caller, counting, instance, refused, server, tls};

/// A plane reads these files.
fn files(folder: &Folder) -> TlsConfig {
    TlsConfig::new(Name::new("blue").unwrap(), Pem::file(folder.path("ca.pem")))
        .with_certificate(Pem::file(folder.path("tls.pem")), Pem::file(folder.path("tls.key")))
}

/// An engine whose senders the test holds.
fn held() -> (Ingress, mpsc::Receiver<ResponseSender<u32>>) {
    let (hand, senders) = mpsc::channel(8);
    let engine = engine_fn(move |ctx: Context, _: u32| {
        let hand = hand.clone();
        async move {
            let (sender, stream) = ResponseStream::channel(&ctx, 1);
            hand.send(sender).await.map_err(|_| dynamo_core::Error::internal("test is over"))?;
            Ok(stream)
        }
    });
    (Ingress::new::<u32, u32>(Arc::new(engine)), senders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reload_new_connections_use_the_new_files_and_old_streams_go_on() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = Folder::new("reload");
    folder.write(&old.pem, &old.issue(&["dyn://blue/n/c"]));
    let server = server(files(&folder)).await;
    let before = caller(tls(&old, &old.issue(&["dyn://blue/n/caller"]))).await;
    let after = caller(tls(&new, &new.issue(&["dyn://blue/n/caller"]))).await;
    let instance = instance("c", at(&server));
    let (ingress, mut senders) = held();
    let _binding = server.bind(&instance.endpoint, (InstanceId(1), 0), ingress).await.unwrap();
    let engine = before.dial(&instance).await.unwrap().engine::<u32, u32>().unwrap();
    let mut stream = engine.generate(Context::new(), 0).await.unwrap();
    let sender = senders.recv().await.unwrap();
    refused(&after, &instance).await;

    // Neither authority knows the other.
    folder.write(&new.pem, &new.issue(&["dyn://blue/n/c"]));
    server.reload_tls().await.unwrap();
    after.dial(&instance).await.unwrap();
    let latecomer = caller(tls(&old, &old.issue(&["dyn://blue/n/caller"]))).await;
    let (_, said) = refused(&latecomer, &instance).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
    for n in 0..3 {
        sender.send(n).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), n);
    }
    drop(sender);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_fails_says_why_and_keeps_what_was_good() {
    let authority = Authority::new("root");
    let folder = Folder::new("broken");
    let issued = authority.issue(&["dyn://blue/n/c"]);
    folder.write(&authority.pem, &issued);
    let server = server(files(&folder)).await;
    let instance = instance("c", at(&server));
    let _binding = server.bind(&instance.endpoint, (InstanceId(1), 0), counting()).await.unwrap();
    let other = authority.issue(&["dyn://blue/n/c"]);
    let expired = authority.issue_until(2020, &["dyn://blue/n/c"]);
    for (name, text) in [
        ("tls.key", "nonsense"),
        ("tls.key", &other.key),
        ("tls.pem", &expired.chain),
        ("ca.pem", ""),
    ] {
        folder.write(&authority.pem, &issued);
        replace(&folder.path(name), text);
        let error = server.reload_tls().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(name) || error.message().contains("expired"), "{error}");
        let caller = caller(tls(&authority, &issued)).await;
        assert_eq!(call(&caller, &instance).await.unwrap(), [0, 1, 2]);
    }
    fs::remove_file(folder.path("ca.pem")).unwrap();
    assert!(server.reload_tls().await.unwrap_err().message().contains("ca.pem"));
    let plain = super::start(dynamo_core::request_plane::TcpConfig::default()).await;
    assert_eq!(plain.reload_tls().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// Calls until it works: files are looked at now and then.
async fn in_time(caller: &TcpRequestPlane, instance: &dynamo_core::Instance) {
    let works = async {
        while call(caller, instance).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), works).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_files_are_noticed_and_a_wider_certificate_is_asked_for_again() {
    let authority = Authority::new("root");
    let folder = Folder::new("watch");
    folder.write(&authority.pem, &authority.issue(&["dyn://blue/n/a"]));
    let server = server(files(&folder).with_reload_every(Duration::from_millis(1))).await;
    let caller = caller(tls(&authority, &authority.issue(&["dyn://blue/n/caller"]))).await;
    let (a, b) = (instance("a", at(&server)), instance("b", at(&server)));
    let (ingress, mut senders) = held();
    let _a = server.bind(&a.endpoint, (InstanceId(1), 0), ingress).await.unwrap();
    let engine = caller.dial(&a).await.unwrap().engine::<u32, u32>().unwrap();
    let mut stream = engine.generate(Context::new(), 0).await.unwrap();
    let sender = senders.recv().await.unwrap();
    refused(&caller, &b).await;

    // Broken for a while, as when a tool writes one file after the other.
    replace(&folder.path("tls.key"), "");
    folder.write(&authority.pem, &authority.issue(&["dyn://blue/n/a", "dyn://blue/n/b"]));
    let bound = async {
        loop {
            match server.bind(&b.endpoint, (InstanceId(1), 0), counting()).await {
                Ok(binding) => break binding,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let _b = tokio::time::timeout(Duration::from_secs(20), bound).await.unwrap();
    in_time(&caller, &b).await;
    // The connection that the first one answers over is another one, and goes on.
    assert_eq!(caller.stats().connections_total, 2);
    sender.send(7).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 7);
    drop(sender);
    drop(stream);
    // With nothing left to do it ends.
    let ended = async {
        while open(&server) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert_eq!(call(&caller, &b).await.unwrap(), [0, 1, 2]);
    for plane in [caller, server] {
        plane.shutdown().await;
    }
}

/// Returns how many connections to `server` are established, as their callers see it.
fn open(server: &TcpRequestPlane) -> usize {
    let port = format!(":{:04X}", server.address().unwrap().port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let established = table.lines().filter(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns[2].ends_with(&port) && columns[3] == "01"
    });
    established.count()
}
