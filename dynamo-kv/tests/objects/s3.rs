//! S3's own protocol, to a server on this host.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use dynamo_kv::tier::object::object_store::aws::AmazonS3Builder;
use dynamo_kv::tier::object::object_store::{ObjectStore, ObjectStoreExt as _};
use dynamo_kv::tier::object::{ObjectTier, OnFull};
use dynamo_kv::tier::{Damage, MissReason, Stored};
use futures::TryStreamExt as _;

use crate::faulty::{Fault, vandalise};
use crate::support::{config, keys, load, object, store};

#[tokio::test]
async fn blocks_are_kept_found_bounded_and_removed_over_s3() {
    let Some(server) = Server::start() else {
        let how = "`cargo xtask test`, which lets pip fetch moto";
        let said = format!("SKIPPED: the object tier over S3; to run it: {how}\n");
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        return;
    };
    let s3 = server.bucket().await;
    let block_bytes = 200_000;
    let tier = ObjectTier::new(Arc::clone(&s3), config(block_bytes)).unwrap();
    let stored = store(&tier, 0..40, block_bytes).await;
    assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))), "{stored:?}");

    let other = ObjectTier::new(Arc::clone(&s3), config(block_bytes)).unwrap();
    assert_eq!(other.match_prefix(&keys(0..64)).await, 40);
    assert!(load(&other, 0..40, block_bytes).await.is_empty());
    let fresh = ObjectTier::new(Arc::clone(&s3), config(block_bytes)).unwrap();
    let stored = store(&fresh, 0..3, block_bytes).await;
    assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Present))), "{stored:?}");

    vandalise(&*s3, &object(1), Fault::Flip(9 << 10)).await;
    vandalise(&*s3, &object(2), Fault::Cut(100)).await;
    vandalise(&*s3, &object(3), Fault::Other(object(4))).await;
    vandalise(&*s3, &object(5), Fault::Deny).await;
    let reasons: Vec<_> =
        load(&other, 0..8, block_bytes).await.into_iter().map(|miss| miss.reason).collect();
    assert!(
        matches!(
            reasons[..],
            [
                MissReason::Damaged(Damage::Digest),
                MissReason::Damaged(Damage::Truncated),
                MissReason::Damaged(Damage::Foreign),
                MissReason::Absent,
            ]
        ),
        "{reasons:?}"
    );

    let bounded = config(block_bytes).with_known_max(20, OnFull::Delete);
    let bounded = ObjectTier::new(Arc::clone(&s3), bounded).unwrap();
    assert_eq!(bounded.refresh().await.unwrap(), 20);
    let count = || async { s3.list(None).try_collect::<Vec<_>>().await.unwrap().len() };
    assert_eq!(count().await, 20);
    assert_eq!(bounded.remove(&keys(0..40)).await.unwrap(), 20);
    store(&bounded, 0..4, block_bytes).await;
    bounded.clear().await.unwrap();
    assert_eq!(count().await, 0);
    assert!(s3.head(&object(0)).await.is_err());
}

/// A server that speaks S3, killed on drop.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// Starts it if `xtask` has told where there is one.
    #[expect(clippy::disallowed_methods, reason = "only xtask says where it is")]
    fn start() -> Option<Self> {
        let python = std::env::var_os("DYNAMO_MOTO")?;
        let mut process = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says which port it was given.
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("Running on ")?.1.trim().to_owned()))
            .unwrap();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Some(Self { process, url })
    }

    async fn bucket(&self) -> Arc<dyn ObjectStore> {
        // The HTTP client wants to know who encrypts, also where nobody does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = reqwest::Client::new().put(format!("{}/blocks", self.url)).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.url)
            .with_allow_http(true)
            .with_bucket_name("blocks")
            .with_region("us-east-1")
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .build()
            .unwrap();
        Arc::new(store)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
