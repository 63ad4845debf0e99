use dynamo_core::ErrorKind;

use super::*;
use crate::router::RouterConfig;

mod runtime;

fn ours() -> Policy {
    Policy::Kv(Box::default())
}

/// A trace of requests: milliseconds, prompt tokens, output tokens, id of the first block.
fn trace(requests: &[(u64, usize, u64, u64)]) -> Trace {
    let lines = requests.iter().map(|(at, prompt, output, first)| {
        let ids: Vec<_> = (*first..).take(prompt.div_ceil(512)).collect();
        format!(
            "{{\"timestamp\": {at}, \"input_length\": {prompt}, \"output_length\": {output}, \
             \"hash_ids\": {ids:?}}}\n"
        )
    });
    Trace::mooncake(&lines.collect::<String>()).unwrap()
}

/// Conversations whose turns are 2,048 tokens longer each and come in turn, one every 150 ms.
fn conversations(count: u64, turns: usize) -> Trace {
    let turns = (0..turns).flat_map(|turn| (0..count).map(move |who| (turn, who)));
    let requests = turns
        .zip(0..)
        .map(|((turn, who), number)| (number * 150, (turn + 1) * 2048 + 100, 20, who * 1000));
    trace(&requests.collect::<Vec<_>>())
}

fn run(trace: &Trace, fleet: &Fleet, policy: &Policy) -> Report {
    replay(trace, fleet, policy).unwrap()
}

#[test]
fn a_lone_request_takes_what_the_model_says() {
    let report = run(&trace(&[(5, 1000, 3, 0)]), &Fleet::aggregated(2), &ours());
    let prefill = 16.50142 + 15.18344 + 0.4209989;
    assert!((report.ttft.mean_ms() - prefill).abs() < 1e-3, "{report}");
    let share = 1001.0 / f64::from(1 << 20);
    let step = 5.74 + 54.01 * share - 25.74 * share * share;
    assert!((report.tpot.mean_ms() - step).abs() < 1e-3, "{report}");
    assert!((report.e2e.mean_ms() - prefill - 2.0 * step).abs() < 1e-3, "{report}");
}

#[test]
fn long_prompts_come_in_chunks_and_stall_those_who_decode() {
    let alone = trace(&[(0, 100, 200, 0)]);
    let beside = trace(&[(0, 100, 200, 0), (100, 60_000, 1, 100)]);
    let fleet = Fleet::aggregated(1);
    let quick = run(&alone, &fleet, &ours()).tpot.mean_ms();
    let report = run(&beside, &fleet, &ours());
    // Seven full passes and one more, of 170 ms each at most, over 199 steps.
    let stalled = report.tpot.mean_ms() - quick;
    assert!(stalled > 4.0 && stalled < 8.0 * 190.0 / 199.0, "{report}");
}

#[test]
fn a_repeated_prompt_is_found_but_for_its_last_token() {
    let twice = [(0, 1024, 1, 0), (1000, 1024, 1, 0)];
    let report = run(&trace(&twice), &Fleet::aggregated(4), &ours());
    assert!((report.reuse - 512.0 / 2048.0).abs() < 1e-9, "{report}");
    let longer = [(0, 1024, 1, 0), (1000, 1025, 1, 0)];
    let report = run(&trace(&longer), &Fleet::aggregated(4), &ours());
    assert!((report.reuse - 1024.0 / 2049.0).abs() < 1e-9, "{report}");
}

#[test]
fn a_full_cache_forgets_the_oldest_and_then_lets_requests_wait_or_start_anew() {
    let engine = EngineConfig { cache_tokens: 4 * 512, ..EngineConfig::default() };
    let fleet = Fleet::aggregated(1).with_engine(engine);
    // Block 0 is pushed out by 10 to 13, which are found again.
    let old = [(0, 600, 1, 0), (1000, 2000, 1, 10), (2000, 2000, 1, 10), (3000, 600, 1, 0)];
    let report = run(&trace(&old), &fleet, &ours());
    assert!((report.reuse - 1536.0 / 5200.0).abs() < 1e-9, "{report}");
    // Two that fit by their prompts and not by their answers.
    let growing = [(0, 1000, 600, 0), (0, 1000, 600, 10)];
    let report = run(&trace(&growing), &fleet, &ours());
    assert_eq!((report.requests, report.refused), (2, 0));
    assert!(report.preemptions > 0, "{report}");
    // One that never fits.
    let report = run(&trace(&[(0, 3000, 1, 0), (0, 100, 1, 9)]), &fleet, &ours());
    assert_eq!((report.requests, report.refused), (1, 1));
}

#[test]
fn the_same_replay_gives_the_same_bytes() {
    let trace = Trace::hot_prefix(400, 12.0, 8, 7);
    let policies =
        [ours(), Policy::RoundRobin, Policy::Random, Policy::LeastLoaded, Policy::SharedCache];
    for fleet in [Fleet::aggregated(4), Fleet::disaggregated(2, 2)] {
        for policy in &policies {
            let reports: Vec<_> = (0..2).map(|_| run(&trace, &fleet, policy)).collect();
            assert_eq!(reports[0], reports[1]);
            assert_eq!(reports[0].to_string(), reports[1].to_string());
            assert_eq!(reports[0].requests, 400);
        }
    }
    let other = Policy::Kv(Box::new(RouterConfig::default().with_seed(1)));
    let fleet = Fleet::aggregated(4);
    assert_ne!(run(&trace, &fleet, &ours()), run(&trace, &fleet, &other));
}

#[test]
fn conversations_stay_where_their_cache_is() {
    let trace = conversations(40, 6);
    let fleet = Fleet::aggregated(4);
    let policy = ours();
    let (ours, blind) = (run(&trace, &fleet, &policy), run(&trace, &fleet, &Policy::LeastLoaded));
    let ceiling = run(&trace, &fleet, &Policy::SharedCache);
    assert!(ours.reuse > 0.95 * ceiling.reuse, "{ours}\n{ceiling}");
    assert!(ours.reuse > 1.5 * blind.reuse, "{ours}\n{blind}");
    assert!(ours.ttft.mean_ms() < 0.8 * blind.ttft.mean_ms(), "{ours}\n{blind}");
    // What is told late is found late, unless it was sent there a moment ago; nothing else goes wrong.
    let late = fleet.with_event_lag(Duration::from_secs(3600));
    let told = Policy::Kv(Box::new(RouterConfig::default().with_provisional_ttl(None)));
    let [told, sent] = [&told, &policy].map(|policy| run(&trace, &late, policy).reuse);
    assert!(told < sent && told < 0.7 * ours.reuse, "{told} {sent}\n{ours}");
}

#[test]
fn affinity_never_costs_the_tail_more_than_a_twentieth() {
    for trace in [Trace::zero_reuse(1500, 12.0, 3), Trace::hot_prefix(1500, 12.0, 16, 3)] {
        let fleet = Fleet::aggregated(8);
        let (ours, least) =
            (run(&trace, &fleet, &ours()), run(&trace, &fleet, &Policy::LeastLoaded));
        let ratio = ours.ttft.percentile_ms(99) / least.ttft.percentile_ms(99);
        assert!(ratio <= 1.05, "{ratio}:\n{ours}\n{least}");
    }
}

#[test]
fn a_slower_link_delays_the_second_token_and_not_the_first() {
    let trace = trace(&[(0, 20_000, 2, 0)]);
    let slow = Roles::Disaggregated {
        prefill: 1,
        decode: 1,
        token_bytes: 327_680.0,
        link_bytes_per_s: 2.5e9,
    };
    let fleet = Fleet::disaggregated(1, 1);
    let (fast, slow) =
        (run(&trace, &fleet, &ours()), run(&trace, &Fleet { roles: slow, ..fleet }, &ours()));
    assert_eq!(fast.ttft, slow.ttft);
    let tenfold = 20_000.0 * 327_680.0 / 25e9 * 9.0 * 1e3;
    assert!((slow.tpot.mean_ms() - fast.tpot.mean_ms() - tenfold).abs() < 1e-3, "{fast}\n{slow}");
}

#[test]
fn a_line_that_is_no_request_is_named() {
    let good = "{\"timestamp\": 0, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": [1]}";
    for (bad, what) in [
        ("{", "line 2: EOF"),
        ("{\"timestamp\": 0}", "line 2: no number \"input_length\""),
        (&good.replace("[1]", "[]"), "line 2: 0 hash ids for 512 tokens"),
        (&good.replace("[1]", "[-1]"), "line 2: hash id -1"),
        (&good.replace("512", "99999999999"), "line 2: 99999999999 tokens of \"input_length\""),
    ] {
        let error = Trace::mooncake(&format!("{good}\n{bad}\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(what), "{error}");
    }
    assert!(Trace::mooncake("").unwrap().is_empty());
}
