//! A store that fails when it is told to.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dynamo_kv::tier::object::object_store::path::Path;
use dynamo_kv::tier::object::object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use futures::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};

/// One request, as whoever chooses faults sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    Put,
    Get,
    Head,
    Delete,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It fails, and nothing is done.
    Fail,
    /// It is done, and fails.
    FailAfter,
    /// It never ends, and nothing is done.
    Hang,
    /// It is done, and never ends.
    HangAfter,
    /// It is done, and others run before and behind.
    Yield,
    /// It is done, and a second goes by before anybody knows.
    Late,
    /// The body is cut, and the size is what it was.
    Cut(usize),
    /// The body, and the size with it, is cut.
    Shorten(usize),
    /// A bit of the body is flipped.
    Flip(usize),
    /// It is of another object.
    Other(Path),
    /// What is there seems not to be.
    Deny,
}

type Choose = Box<dyn FnMut(&Act, &Path) -> Fault + Send>;

pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    choose: Mutex<Choose>,
}

impl Faulty {
    pub(crate) fn new(
        inner: &Arc<dyn ObjectStore>,
        choose: impl FnMut(&Act, &Path) -> Fault + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), choose: Mutex::new(Box::new(choose)) })
    }

    fn choose(&self, act: &Act, path: &Path) -> Fault {
        (self.choose.lock().unwrap())(act, path)
    }
}

fn failure() -> Error {
    Error::Generic { store: "faulty", source: "told to".into() }
}

fn absent(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "told to".into() }
}

async fn late<T>(answer: T) -> T {
    tokio::time::sleep(Duration::from_secs(1)).await;
    answer
}

/// Returns a body as a fault leaves it.
fn damage(fault: &Fault, body: Bytes) -> Bytes {
    match fault {
        Fault::Cut(len) | Fault::Shorten(len) => body.slice(..body.len().min(*len)),
        Fault::Flip(bit) if !body.is_empty() => {
            let mut body = Vec::from(body);
            let len = body.len();
            body[bit / 8 % len] ^= 1 << (bit % 8);
            body.into()
        }
        _ => body,
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fault = self.choose(&Act::Put, path);
        match fault {
            Fault::Fail => return Err(failure()),
            Fault::Hang => return std::future::pending().await,
            Fault::Yield => tokio::task::yield_now().await,
            _ => {}
        }
        let payload = match fault {
            // A store that says that it has all of it.
            Fault::Cut(_) | Fault::Shorten(_) | Fault::Flip(_) => {
                damage(&fault, payload.into()).into()
            }
            _ => payload,
        };
        let put = self.inner.put_opts(path, payload, options).await;
        match fault {
            Fault::FailAfter => Err(failure()),
            Fault::HangAfter => std::future::pending().await,
            Fault::Late => late(put).await,
            Fault::Yield => {
                tokio::task::yield_now().await;
                put
            }
            _ => put,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let act = if options.head { Act::Head } else { Act::Get };
        let fault = self.choose(&act, path);
        match fault {
            Fault::Fail => return Err(failure()),
            Fault::Deny => return Err(absent(path)),
            Fault::Hang => return std::future::pending().await,
            _ => {}
        }
        if fault == Fault::Yield {
            tokio::task::yield_now().await;
            let found = self.inner.get_opts(path, options).await;
            tokio::task::yield_now().await;
            return found;
        }
        if fault == Fault::Late {
            return late(self.inner.get_opts(path, options).await).await;
        }
        if options.head {
            return self.inner.get_opts(path, options).await;
        }
        let source = if let Fault::Other(path) = &fault { path } else { path };
        let found = self.inner.get_opts(source, options).await?;
        let (mut meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        if fault == Fault::None {
            // As it is: a file stays a file.
            return Ok(found);
        }
        let body = damage(&fault, found.bytes().await?);
        if let Fault::Shorten(_) = fault {
            meta.size = body.len() as u64;
        }
        let mut pieces: Vec<Result<Bytes>> =
            body.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        if fault == Fault::FailAfter {
            pieces.pop();
            pieces.push(Err(failure()));
        }
        let pieces = stream::iter(pieces);
        let pieces = match fault {
            Fault::HangAfter => pieces.take(1).chain(stream::pending()).boxed(),
            _ => pieces.boxed(),
        };
        let payload = GetResultPayload::Stream(pieces);
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.choose(&Act::Delete, &Path::default()) {
            Fault::Fail => stream::iter([Err(failure())]).boxed(),
            Fault::Hang => stream::pending().boxed(),
            Fault::Yield => {
                let inner = Arc::clone(&self.inner);
                let deleted = tokio::task::yield_now().map(move |()| inner.delete_stream(paths));
                deleted.flatten_stream().boxed()
            }
            _ => self.inner.delete_stream(paths),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Damages an object in a store behind whoever uses it.
pub(crate) async fn vandalise(store: &dyn ObjectStore, path: &Path, fault: Fault) {
    let source = if let Fault::Other(path) = &fault { path } else { path };
    let Ok(found) = store.get(source).await else { return };
    let body = damage(&fault, found.bytes().await.unwrap());
    match fault {
        Fault::Deny => store.delete(path).await.unwrap(),
        _ => drop(store.put(path, body.into()).await.unwrap()),
    }
}
