//! What a server refuses, and what it breaks.

use super::*;
use crate::engine::layers::{Migrate, MigratePolicy};
use crate::error::Error;

#[tokio::test]
async fn a_refusal_says_what_the_caller_can_branch_on() {
    use ErrorKind::{Internal, InvalidArgument, Overloaded, Unavailable};
    for (fault, kind, is_retryable, after_s) in [
        (Fault::Refuse(400), InvalidArgument, false, None),
        (Fault::Refuse(500), Internal, false, None),
        (Fault::Refuse(502), Unavailable, false, None),
        (Fault::Refuse(503), Unavailable, true, None),
        (Fault::TooMany { retry_after_s: 7 }, Overloaded, true, Some(7)),
    ] {
        let server = played([fault.clone()]).await;
        let error = asked(&engine(server.url()), 3).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (kind, is_retryable), "{fault:?}");
        assert_eq!(error.retry_after(), after_s.map(Duration::from_secs), "{fault:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_another_may_be_asked() {
    let server = played([]).await;
    let engine = engine(server.url());
    server.shutdown().await;
    let error = asked(&engine, 3).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    assert!(error.message().contains(server.url()), "{error}");
}

#[tokio::test]
async fn a_wrong_model_and_a_wrong_key_are_the_callers() {
    let script = Script { api_key: Some("sesame".into()), ..Script::default() };
    let server = PlayedServer::start(script).await.unwrap();
    let kind_of = async |config| {
        let engine = OpenAiEngine::new(config).unwrap();
        asked(&engine, 3).await.map_err(|error| error.kind()).map(|chunks| tokens(&chunks).len())
    };
    let config = || config(server.url());
    assert_eq!(kind_of(config()).await, Err(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(config().with_api_key("sesame")).await, Ok(3));
    let other = OpenAiConfig::new(server.url(), "other").with_api_key("sesame");
    assert_eq!(kind_of(other).await, Err(ErrorKind::NotFound));
}

#[tokio::test]
async fn an_answer_that_breaks_ends_with_what_came_and_an_error() {
    use ErrorKind::{Internal, Protocol, Unavailable};
    for (fault, came, kind) in [
        (Fault::CloseAfter(3), 3, Unavailable),
        (Fault::WithoutEnd, 5, Unavailable),
        (Fault::ErrorAfter(2), 2, Internal),
        (Fault::MalformedAfter(2), 2, Protocol),
        (Fault::LongLineAfter(1, 9 << 20), 1, Protocol),
        (Fault::WithoutIds, 0, Protocol),
    ] {
        let server = played([fault.clone()]).await;
        let engine = engine(server.url());
        let stream = engine.generate(Context::new(), request(5)).await.unwrap();
        let (taken, error) = until_failed(stream).await;
        assert_eq!(taken, Script::default().answer(&prompt(), 5)[..came], "{fault:?}");
        assert_eq!((error.kind(), error.is_retryable()), (kind, false), "{fault:?}: {error}");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn urls_and_keys_that_cannot_be_used_are_refused_by_name() {
    for url in ["", "host:8000", "https://host", "http://", "http://u@host", "http://host/v1/"] {
        let error = OpenAiEngine::new(OpenAiConfig::new(url, "m")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url:?}");
        assert!(error.message().contains(&format!("{url:?}")), "{error}");
    }
    let config = OpenAiConfig::new("http://host/base/", "m").with_api_key("a\nb");
    assert_eq!(OpenAiEngine::new(config).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// Asks one server after the other, as a client does that picks another for each attempt.
struct Either([OpenAiEngine; 2], std::sync::atomic::AtomicUsize);

impl Engine for Either {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>, Error> {
        let attempt = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0[attempt % 2].generate(ctx, request).await
    }
}

#[tokio::test]
async fn an_answer_whose_server_dies_goes_on_at_another_as_if_it_had_not() {
    let (dying, other) = (played([Fault::CloseAfter(7)]).await, played([]).await);
    let either = Either([engine(dying.url()), engine(other.url())], 0.into());
    let migrating = Migrate::new(either, MigratePolicy::default());
    let migrated = migrating.generate(Context::new(), request(20)).await.unwrap();
    let migrated = migrated.collect().await.unwrap();

    let alone = played([]).await;
    let uninterrupted = asked(&engine(alone.url()), 20).await.unwrap();
    assert_eq!(tokens(&migrated), tokens(&uninterrupted));
    let (its, whole) = (migrated.last().unwrap(), uninterrupted.last().unwrap());
    assert_eq!((its.finish, its.usage), (whole.finish, whole.usage));
    let rest = &other.asked()[0].body;
    assert_eq!(rest["prompt"].as_array().unwrap().len(), 57);
    assert_eq!(rest["max_tokens"], 13);
}
