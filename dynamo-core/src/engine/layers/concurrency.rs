use crate::engine::{Admission, Context, Engine, ResponseStream};
use crate::error::Result;

/// Lets so many streams run through the engine at once, and so many requests wait.
///
/// The permit lives in the stream, not in the call that starts it. Who waits, who goes first and
/// who is refused is said at [`Admission`].
#[derive(Debug, Clone)]
pub struct Concurrency<E> {
    engine: E,
    admission: Admission,
}

impl<E> Concurrency<E> {
    /// Lets `running_max` streams run through `engine` at once and `waiting_max` requests wait.
    pub fn new(engine: E, running_max: usize, waiting_max: usize) -> Self {
        Self::with_admission(engine, Admission::new(running_max, waiting_max))
    }

    /// Shares `admission` with others who hold a clone of it.
    pub fn with_admission(engine: E, admission: Admission) -> Self {
        Self { engine, admission }
    }

    /// Returns who is admitted, to count and to close.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }
}

impl<E: Engine> Engine for Concurrency<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let permit = self.admission.admit(&ctx).await?;
        Ok(self.engine.generate(ctx, request).await?.with_guard(permit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::engine_fn;
    use crate::error::{Error, ErrorKind};

    #[tokio::test]
    async fn the_permit_lives_as_long_as_the_stream() {
        let engine = engine_fn(|ctx: Context, fails: bool| async move {
            if fails {
                return Err(Error::internal("boom"));
            }
            Ok(ResponseStream::from_items(&ctx, [1, 2]))
        });
        let engine = Concurrency::new(engine, 1, 0);
        let mut stream = engine.generate(Context::new(), false).await.unwrap();
        assert!(stream.next().await.is_some());
        let error = engine.generate(Context::new(), false).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Overloaded && error.is_retryable());

        assert!(stream.next().await.is_some() && stream.next().await.is_none());
        assert_eq!(engine.admission().running(), 0, "given back at the end");
        drop(engine.generate(Context::new(), false).await.unwrap());
        assert_eq!(engine.admission().running(), 0, "given back when dropped");
        engine.generate(Context::new(), true).await.unwrap_err();
        assert_eq!(engine.admission().running(), 0, "given back when nothing started");
    }

    #[tokio::test]
    async fn the_next_starts_when_a_stream_ends() {
        let engine =
            engine_fn(
                |ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, [n])) },
            );
        let engine = Concurrency::new(engine, 1, 1);
        let first = engine.generate(Context::new(), 1).await.unwrap();
        let mut second = Box::pin(engine.generate(Context::new(), 2));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(first.collect().await.unwrap(), [1]);
        assert_eq!(second.await.unwrap().collect().await.unwrap(), [2]);
    }
}
