use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::Value;

use super::Fault;
use super::answer::{Cut, Refusal};
use super::generation::Generation;
use super::record::AskedState;

/// What the next event of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Delta,
    Usage,
    Done,
    Nothing,
}

/// A stream of events while it is sent.
struct Events {
    generation: Generation,
    next: Next,
    /// The fault that comes in the middle is still to come.
    is_faulty: bool,
}

impl Generation {
    /// Returns the answer as server-sent events.
    pub(super) fn events(self) -> BoxStream<'static, Result<Bytes, Cut>> {
        let events = Events { generation: self, next: Next::Delta, is_faulty: true };
        stream::unfold(events, |mut events| async move {
            let event = events.event().await?;
            Some((event, events))
        })
        .boxed()
    }
}

impl Events {
    async fn event(&mut self) -> Option<Result<Bytes, Cut>> {
        match self.next {
            Next::Delta => {
                let after = self.fault_after().filter(|_| self.is_faulty);
                if after.is_some_and(|after| self.generation.len() >= after) {
                    self.is_faulty = false;
                    if let Some(fault) = self.fault().await {
                        return Some(fault);
                    }
                }
                Some(Ok(self.delta(after.filter(|_| self.is_faulty)).await))
            }
            Next::Usage => {
                let mut object = self.generation.object(Vec::new());
                object["usage"] = self.generation.usage();
                self.next = Next::Done;
                Some(Ok(event(&object)))
            }
            Next::Done => {
                self.end();
                Some(Ok(Bytes::from_static(b"data: [DONE]\n\n")))
            }
            Next::Nothing => None,
        }
    }

    /// Computes and tells the next tokens, none that come after the fault.
    async fn delta(&mut self, fault_after: Option<usize>) -> Bytes {
        let per_delta = self.generation.played.script.tokens_per_delta.max(1);
        let before_fault = fault_after.map_or(usize::MAX, |after| after - self.generation.len());
        let token_ids = self.generation.compute(per_delta.min(before_fault)).await;
        let mut choice = self.generation.choice(&token_ids);
        if self.generation.is_over() {
            let has_usage = self.generation.ask.includes_usage();
            self.next = if has_usage { Next::Usage } else { Next::Done };
            if self.generation.fault == Fault::WithoutEnd {
                choice["finish_reason"] = Value::Null;
                self.end();
            }
        }
        event(&self.generation.object(vec![choice]))
    }

    /// Returns after how many tokens something goes wrong.
    fn fault_after(&self) -> Option<usize> {
        match self.generation.fault {
            Fault::HangAfter(after)
            | Fault::CloseAfter(after)
            | Fault::ErrorAfter(after)
            | Fault::MalformedAfter(after)
            | Fault::LongLineAfter(after, _) => Some(after),
            _ => None,
        }
    }

    /// Does what goes wrong in the middle; `None` if the stream goes on at once.
    async fn fault(&mut self) -> Option<Result<Bytes, Cut>> {
        match self.generation.fault {
            Fault::HangAfter(_) => {
                self.generation.played.released.cancelled().await;
                None
            }
            Fault::CloseAfter(_) => {
                // What was sent before is written out first.
                tokio::task::yield_now().await;
                self.generation.record.set(AskedState::Cut);
                Some(Err(Cut))
            }
            Fault::ErrorAfter(_) => {
                self.next = Next::Done;
                let message = "failed, as the script says";
                let body = Refusal::body("InternalServerError", message, None, 500);
                Some(Ok(event(&body)))
            }
            Fault::MalformedAfter(_) => Some(Ok(Bytes::from_static(b"data: {\"choices\": [\n\n"))),
            Fault::LongLineAfter(_, bytes) => {
                Some(Ok(format!("data: {}\n\n", "x".repeat(bytes)).into()))
            }
            _ => None,
        }
    }

    /// Nothing more comes after what is sent next.
    fn end(&mut self) {
        self.next = Next::Nothing;
        self.generation.record.set(AskedState::Answered);
    }
}

fn event(body: &Value) -> Bytes {
    format!("data: {body}\n\n").into()
}
