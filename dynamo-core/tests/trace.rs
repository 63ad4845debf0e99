//! One trace goes through all processes. Alone in its program: which spans are wanted is remembered
//! for all threads of one.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex};

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::engine::layers::Trace;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::TraceContext;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Client, Context, Endpoint, Engine, ResponseStream, Runtime, engine_fn};

async fn runtime(discovery: &Arc<MemoryDiscovery>) -> Runtime {
    let config = TcpConfig::default().with_listen("127.0.0.1:0".parse().unwrap());
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    Runtime::new(
        Arc::<MemoryDiscovery>::clone(discovery),
        plane,
        Arc::<MemoryEventPlane>::default(),
    )
}

fn endpoint(runtime: &Runtime) -> Endpoint<u32, u32> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

/// Span names with their fields, as a subscriber is told them.
#[derive(Default)]
struct Spans(Mutex<Vec<(String, String)>>);

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut spans = self.0.lock().unwrap();
        spans.push((attributes.metadata().name().to_owned(), String::new()));
        let id = spans.len() as u64;
        drop(spans);
        attributes.record(&mut Fields(self, id));
        tracing::span::Id::from_u64(id)
    }

    fn record(&self, span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(self, span.into_u64()));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields<'a>(&'a Spans, u64);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let at = usize::try_from(self.1).unwrap() - 1;
        self.0.0.lock().unwrap()[at].1 += &format!("{}={value:?} ", field.name());
    }
}

#[tokio::test]
async fn one_trace_goes_through_all_processes() {
    let spans = Arc::new(Spans::default());
    let _subscribed = tracing::subscriber::set_default(Arc::clone(&spans));
    let discovery = Arc::default();
    let (server, caller) = (runtime(&discovery).await, runtime(&discovery).await);
    let seen = Arc::<Mutex<Option<TraceContext>>>::default();
    let noted = Arc::clone(&seen);
    let engine = engine_fn(move |ctx: Context, _: u32| {
        *noted.lock().unwrap() = ctx.trace().copied();
        async move { Ok(ResponseStream::from_items(&ctx, [1])) }
    });
    let engine = Trace::new(engine, "model");
    let _serving = endpoint(&server).serve(engine).await.unwrap();
    let client: Client<u32, u32> = endpoint(&caller).client().await.unwrap();
    let trace: TraceContext =
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let ctx = Context::new().with_trace(trace);
    client.generate(ctx, 1).await.unwrap().collect().await.unwrap();
    let at_engine = seen.lock().unwrap().unwrap();
    assert_eq!((at_engine.trace_id(), at_engine.flags()), (trace.trace_id(), trace.flags()));
    assert_ne!(at_engine.span_id(), trace.span_id());

    let spans = spans.0.lock().unwrap();
    let field = |name: &str, field: &str| {
        let fields = &spans.iter().find(|(its, _)| its == name).unwrap().1;
        let value = fields.split(' ').find_map(|pair| pair.strip_prefix(&format!("{field}=")));
        value.unwrap_or_else(|| panic!("{field} of {name} in {fields}")).to_owned()
    };
    for name in ["call", "serve", "engine"] {
        assert_eq!(field(name, "trace"), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
    assert_eq!([field("call", "endpoint"), field("serve", "endpoint")], ["n/c/e", "n/c/e"]);
    assert_eq!(field("serve", "parent"), field("call", "span"));
    assert_eq!(field("engine", "span"), format!("{:016x}", at_engine.span_id()));
    assert_ne!(field("engine", "span"), field("serve", "span"));
    let how = ["name", "outcome", "items"].map(|name| field("engine", name));
    assert_eq!(how, ["model", "\"complete\"", "1"]);
}
