//! Who may ask NATS, and that nobody listens in.

use dynamo_core::nats::{NatsAccess, NatsIdentity};
use dynamo_core::request_plane::{NatsRequestPlane, NatsRequestPlaneConfig, RequestPlane};
use dynamo_core::{ErrorKind, Result};

use crate::server::Server;

/// Starts a plane and ends it; it needs what NATS says to its subscriptions.
async fn enter(access: NatsAccess) -> Result<()> {
    let plane = NatsRequestPlane::start(NatsRequestPlaneConfig::new(access)).await?;
    assert!(plane.is_connected());
    plane.shutdown().await;
    Ok(())
}

fn user(name: &str, password: &str) -> NatsIdentity {
    NatsIdentity::User { name: name.into(), password: password.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_nkeys_that_nats_knows_enter_and_others_do_not() {
    // The pair that the documentation of NATS uses.
    const PUBLIC: &str = "UAMMBNV2EYR65NYZZ7IAK5SIR5ODNTTERJOBOF4KJLMWI45YOXOSWULM";
    const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";
    let users = format!("[{{user: ann, password: right}}, {{nkey: {PUBLIC}}}]");
    let config = format!("authorization {{ users: {users} }}");
    let Some(nats) = Server::start_with(|_| config) else { return };
    let access = |identity| NatsAccess::new(nats.url()).with_identity(identity);
    enter(access(user("ann", "right"))).await.unwrap();
    enter(access(NatsIdentity::NkeySeed(SEED.into()))).await.unwrap();
    for stranger in [NatsIdentity::Anonymous, user("ann", "wrong"), user("bob", "right")] {
        let error = enter(access(stranger)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_nats_knows_enters_and_another_does_not() {
    let config = "authorization { token: right }".to_owned();
    let Some(nats) = Server::start_with(|_| config) else { return };
    let access = |token: &str| {
        NatsAccess::new(nats.url()).with_identity(NatsIdentity::Token(token.to_owned()))
    };
    enter(access("right")).await.unwrap();
    assert_eq!(enter(access("wrong")).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_who_is_certified_and_only_then() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = Server::start_with(|folder| {
        let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&certificate, own.cert.pem()).unwrap();
        std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.join("other.pem"), other.cert.pem()).unwrap();
        format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}")
    });
    let Some(nats) = server else { return };
    let access = |trusted: &str| {
        NatsAccess::new(format!("nats://localhost:{}", nats.port()))
            .with_tls_required()
            .with_root_certificates(nats.folder().join(trusted))
    };
    enter(access("cert.pem")).await.unwrap();
    let plain = Server::start().unwrap();
    let unheard = NatsAccess::new(plain.url()).with_tls_required();
    for refused in [access("other.pem"), unheard] {
        // The plane goes on to try, as with a server that is not there; it says nothing to this one.
        let started = NatsRequestPlane::start(NatsRequestPlaneConfig::new(refused)).await;
        assert!(started.is_err() || started.is_ok_and(|plane| !plane.is_connected()));
    }
}
