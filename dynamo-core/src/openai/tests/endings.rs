//! Ends that the caller or time brings about.

use super::*;

/// Waits until the server has seen the connection of its first request close.
async fn left(server: &PlayedServer) {
    server
        .until(|asked| asked.first().is_some_and(|it| it.state == AskedState::Left))
        .await
        .unwrap();
}

/// Waits until the server is asked, and then lets time pass by itself whenever all wait.
async fn pause_once_asked(server: &PlayedServer) {
    server.until(|asked| !asked.is_empty()).await.unwrap();
    tokio::time::pause();
}

#[tokio::test]
async fn a_caller_that_stops_gets_what_came_and_the_server_is_left() {
    let server = played([Fault::HangAfter(2)]).await;
    let engine = engine(server.url());
    let ctx = Context::new();
    let mut stream = engine.generate(ctx.clone(), request(5)).await.unwrap();
    let mut chunks = Vec::new();
    for _ in 0..2 {
        chunks.push(stream.next().await.unwrap().unwrap());
    }
    ctx.stop();
    chunks.extend(stream.collect().await.unwrap());
    assert_eq!(tokens(&chunks), Script::default().answer(&prompt(), 2));
    let last = chunks.last().unwrap();
    assert_eq!(last.finish, Some(FinishReason::Length));
    let usage = last.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (50, 2));
    left(&server).await;
}

#[tokio::test]
async fn a_caller_that_stops_before_the_answer_begins_gets_an_empty_one() {
    let server = played([Fault::HangBeforeHeaders]).await;
    let engine = engine(server.url());
    let ctx = Context::new();
    let (stream, ()) = tokio::join!(engine.generate(ctx.clone(), request(5)), async {
        server.until(|asked| !asked.is_empty()).await.unwrap();
        ctx.stop();
    });
    let chunks = stream.unwrap().collect().await.unwrap();
    assert_eq!((chunks.len(), chunks[0].finish), (1, Some(FinishReason::Length)));
    left(&server).await;
}

#[tokio::test]
async fn a_kill_closes_the_connection_though_nobody_reads_the_answer() {
    for fault in [Fault::HangBeforeHeaders, Fault::HangAfter(2)] {
        let server = played([fault.clone()]).await;
        let engine = engine(server.url());
        let ctx = Context::new();
        let killed = async {
            server.until(|asked| !asked.is_empty()).await.unwrap();
            ctx.kill();
        };
        let (stream, ()) = tokio::join!(engine.generate(ctx.clone(), request(5)), killed);
        left(&server).await;
        let error = match stream {
            Ok(stream) => until_failed(stream).await.1,
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_the_connection() {
    let server = played([Fault::HangAfter(2)]).await;
    let engine = engine(server.url());
    let mut stream = engine.generate(Context::new(), request(5)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    left(&server).await;
}

#[tokio::test]
async fn a_request_that_is_dropped_before_its_answer_closes_the_connection() {
    let server = played([Fault::HangBeforeHeaders]).await;
    let engine = engine(server.url());
    tokio::select! {
        _ = engine.generate(Context::new(), request(5)) => unreachable!("the server hangs"),
        asked = server.until(|asked| !asked.is_empty()) => asked.map(drop).unwrap(),
    }
    left(&server).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable_when_the_time_for_an_item_is_over() {
    for (fault, came, max) in [
        (Fault::HangBeforeHeaders, 0, "61s"),
        (Fault::HangAfter(0), 0, "61s"),
        (Fault::HangAfter(2), 2, "7s"),
    ] {
        let server = played([fault.clone()]).await;
        let config = config(server.url())
            .with_first_max(Duration::from_secs(61))
            .with_idle_max(Duration::from_secs(7));
        let engine = OpenAiEngine::new(config).unwrap();
        let answer = async {
            match engine.generate(Context::new(), request(5)).await {
                Ok(stream) => until_failed(stream).await,
                Err(error) => (Vec::new(), error),
            }
        };
        let ((taken, error), ()) = tokio::join!(answer, pause_once_asked(&server));
        tokio::time::resume();
        assert_eq!((taken.len(), error.kind()), (came, ErrorKind::Unavailable), "{fault:?}");
        assert!(error.message().ends_with(max) && !error.is_retryable(), "{fault:?}: {error}");
        left(&server).await;
    }
}

#[tokio::test]
async fn a_deadline_ends_the_answer_and_the_connection() {
    for fault in [Fault::HangBeforeHeaders, Fault::HangAfter(2)] {
        let server = played([fault.clone()]).await;
        let engine = engine(server.url());
        let ctx = Context::new().with_timeout(Duration::from_secs(5));
        let answer = async {
            match engine.generate(ctx, request(5)).await {
                Ok(stream) => until_failed(stream).await.1,
                Err(error) => error,
            }
        };
        let (error, ()) = tokio::join!(answer, pause_once_asked(&server));
        tokio::time::resume();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{fault:?}");
        left(&server).await;
    }
}

#[tokio::test]
async fn shutdown_ends_what_runs_and_takes_nothing_more() {
    let server = played([Fault::HangAfter(2), Fault::HangAfter(2)]).await;
    let engine = engine(server.url());
    let read = engine.generate(Context::new(), request(5)).await.unwrap();
    // Nobody reads this one.
    let _idle = engine.generate(Context::new(), request(5)).await.unwrap();
    let (_, (_, error)) = tokio::join!(engine.shutdown(), until_failed(read));
    assert_eq!(error.kind(), ErrorKind::Closed);
    server.until(|asked| asked.iter().all(|it| it.state == AskedState::Left)).await.unwrap();
    let error = asked(&engine, 5).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Closed, true));
}
