//! The closing table: who served what and why, what moved, how long it took.

use dynamo_core::protocol::WorkerId;
use dynamo_examples::graph::Graph;
use dynamo_router::{DisaggReport, RouteExplain};

/// Prints a row for each of `requests`, in order; `host` and `disk` are the prompt tokens that the
/// prefill worker found in each tier.
pub(crate) fn print(requests: &[String], reports: &[DisaggReport], graph: &Graph) {
    println!(
        "{:>2}  {:<9} {:<9} {:>6} {:>6} {:>6} {:>6} {:>7} {:>8} {:>8} {:>7}",
        "#",
        "prefill",
        "decode",
        "prompt",
        "host",
        "disk",
        "blocks",
        "MB",
        "moved ms",
        "TTFT ms",
        "ITL ms"
    );
    let name = |explain: &Option<RouteExplain>| {
        let worker: Option<WorkerId> = explain.as_ref().map(|explain| explain.chosen.worker);
        worker.map_or_else(none, |worker| graph.worker_name(worker.instance))
    };
    for (index, request) in requests.iter().enumerate() {
        let number = index + 1;
        let Some(report) = reports.iter().find(|report| report.request.as_str() == request) else {
            println!("{number:>2}  not reported");
            continue;
        };
        let disk = report.loaded.disk as usize;
        let moved = report.handoff.unwrap_or_default();
        let ms = |time: Option<std::time::Duration>| {
            time.map_or_else(none, |time| format!("{:.1}", time.as_secs_f64() * 1e3))
        };
        println!(
            "{number:>2}  {:<9} {:<9} {:>6} {:>6} {:>6} {:>6} {:>7.1} {:>8.2} {:>8} {:>7}",
            name(&report.prefill),
            name(&report.decode),
            report.prompt_tokens,
            report.cached_tokens.unwrap_or(0).saturating_sub(disk),
            disk,
            moved.blocks_pulled,
            moved.bytes as f64 / 1e6,
            moved.micros as f64 / 1e3,
            ms(report.ttft),
            ms(report.itl),
        );
    }
}

/// Says why each of `requests` was split, and why the workers were chosen that served it.
pub(crate) fn explain(requests: &[String], reports: &[DisaggReport]) {
    println!("\nwhy:");
    for (index, request) in requests.iter().enumerate() {
        let Some(report) = reports.iter().find(|report| report.request.as_str() == request) else {
            continue;
        };
        let why = |explain: &Option<RouteExplain>| {
            explain.as_ref().map_or_else(none, |explain| format!("{explain:#}"))
        };
        let split = report.split.map_or_else(none, |split| split.to_string());
        println!("{:>2}  split:   {split}", index + 1);
        println!("    prefill: {}", why(&report.prefill));
        println!("    decode:  {}", why(&report.decode));
    }
}

fn none() -> String {
    "-".to_owned()
}
