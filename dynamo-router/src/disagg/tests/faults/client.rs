use dynamo_core::RequestId;
use dynamo_core::protocol::TokenId;
use tokio::time::Instant;

use super::*;

/// What one client asks, and how it behaves.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) request: GenerateRequest,
    pub(super) deadline: Option<Duration>,
    pub(super) manner: Manner,
}

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Manner {
    Reads,
    /// It takes so long between chunks.
    ReadsSlowly(Duration),
    /// It goes away after so long, or so many chunks.
    LeavesAt(Duration),
    LeavesAfter(usize),
    /// It ends the request after so long, at once or in order.
    KillsAt(Duration),
    StopsAt(Duration),
}

/// What a client has seen of its answer.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) tokens: Vec<TokenId>,
    pub(super) last: Option<GenerateChunk>,
    pub(super) error: Option<Error>,
    /// The end was told: by an error, or after the last chunk.
    pub(super) is_over: bool,
    pub(super) ended_after: Duration,
}

impl Client {
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut below = |count: u16| u16::try_from(random.next_u64() % u64::from(count)).unwrap();
        let prompt: Vec<TokenId> = (0..1 + below(60)).map(|_| below(25).into()).collect();
        let sampling = Sampling {
            max_tokens: 1 + u32::from(below(8)),
            temperature: below(2).into(),
            seed: below(1000).into(),
            stop_token_ids: vec![3],
            ..Sampling::default()
        };
        let namespace = CacheNamespace::model("m");
        let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, sampling);
        let time = Duration::from_millis(below(400).into());
        let manner = match below(12) {
            0 => Manner::LeavesAt(time),
            1 => Manner::LeavesAfter(below(6).into()),
            2 => Manner::KillsAt(time),
            3 => Manner::StopsAt(time),
            4 => Manner::ReadsSlowly(time),
            _ => Manner::Reads,
        };
        let deadline = (below(4) == 0).then(|| Duration::from_millis(below(3000).into()));
        Self { request, deadline, manner }
    }

    pub(super) async fn run(&self, engine: &PrefillDecode, id: String) -> Seen {
        let mut ctx = Context::with_id(RequestId::from(id.as_str()));
        if let Some(deadline) = self.deadline {
            ctx = ctx.with_timeout(deadline);
        }
        let began = Instant::now();
        let mut seen = Seen {
            tokens: Vec::new(),
            last: None,
            error: None,
            is_over: false,
            ended_after: Duration::ZERO,
        };
        let reads = self.read(engine, ctx.clone(), &mut seen);
        match self.manner {
            Manner::LeavesAt(time) => drop(tokio::time::timeout(time, reads).await),
            Manner::KillsAt(time) | Manner::StopsAt(time) => {
                let ends = async {
                    tokio::time::sleep(time).await;
                    match self.manner {
                        Manner::StopsAt(_) => ctx.stop(),
                        _ => ctx.kill(),
                    }
                };
                futures::future::join(reads, ends).await;
            }
            _ => reads.await,
        }
        seen.ended_after = began.elapsed();
        seen
    }

    async fn read(&self, engine: &PrefillDecode, ctx: Context, seen: &mut Seen) {
        let mut stream = match engine.generate(ctx, self.request.clone()).await {
            Ok(stream) => stream,
            Err(error) => {
                (seen.error, seen.is_over) = (Some(error), true);
                return;
            }
        };
        let mut chunks = 0;
        loop {
            if self.manner == Manner::LeavesAfter(chunks) {
                return;
            }
            match stream.next().await {
                Some(Ok(chunk)) => {
                    assert!(chunk.ticket.is_none(), "tickets stay inside");
                    assert!(seen.last.is_none(), "nothing follows the last chunk");
                    seen.tokens.extend_from_slice(&chunk.token_ids);
                    assert_eq!(chunk.usage.is_some(), chunk.finish.is_some());
                    seen.last = chunk.finish.is_some().then_some(chunk);
                }
                Some(Err(error)) => {
                    (seen.error, seen.is_over) = (Some(error), true);
                    assert!(stream.next().await.is_none(), "one end");
                    return;
                }
                None => {
                    seen.is_over = true;
                    return;
                }
            }
            chunks += 1;
            if let Manner::ReadsSlowly(time) = self.manner {
                tokio::time::sleep(time).await;
            }
        }
    }
}
