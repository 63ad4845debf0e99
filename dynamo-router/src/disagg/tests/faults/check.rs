use super::client::Manner;
use super::*;

/// Returns what a graph still holds though nobody asks anything of it.
pub(super) fn at_rest(graph: &FaultyGraph) -> Vec<String> {
    let mut wrong = graph.world.wrong.lock().unwrap().clone();
    let bookings = |pool: &Pool| pool.router.stats().bookings;
    let servings = graph
        .servings
        .iter()
        .flat_map(|pool| pool.lock().unwrap().iter().map(Serving::inflight).collect::<Vec<_>>());
    let waiting = |pool: &Pool| pool.queue().map_or(0, |queue| queue.stats().waiting);
    for (what, count) in [
        ("requests that wait for prefill workers", waiting(&graph.engine.prefill)),
        ("requests that wait for decode workers", waiting(&graph.engine.decode)),
        ("bookings before prefill workers", bookings(&graph.engine.prefill)),
        ("bookings before decode workers", bookings(&graph.engine.decode)),
        ("prompts staged", graph.world.staged()),
        ("requests in flight", servings.sum()),
    ] {
        if count > 0 {
            wrong.push(format!("{count} {what}"));
        }
    }
    wrong
}

/// Returns what is wrong with one answer.
pub(super) fn answer(
    plan: &Plan,
    graph: &FaultyGraph,
    (number, client, seen): (usize, &Client, &Seen),
) -> Vec<String> {
    let id = number.to_string();
    let reports = graph.reports.lock().unwrap();
    let reports: Vec<_> = reports.iter().filter(|r| r.request.as_str() == id).collect();
    let [report] = reports[..] else { return vec![format!("{} reports", reports.len())] };
    let mut rules = tokens(client, seen);
    rules.extend(ends(client, seen));
    rules.push(("the report says another end", is_told(seen, report.outcome)));
    let completion_tokens = report.completion_tokens;
    rules.push(("the report counts other tokens", completion_tokens == seen.tokens.len()));
    let calls = graph.world.calls.lock().unwrap();
    let stages: Vec<_> = calls.iter().filter(|call| call.0 == id).map(|call| &call.1).collect();
    rules.extend(asked(plan, &stages));
    let complete = seen.last.is_some() && seen.error.is_none();
    rules.push(("one fault is one too many", complete || !must_survive(plan, client)));
    rules.into_iter().filter(|rule| !rule.1).map(|rule| rule.0.to_owned()).collect()
}

/// What was delivered is what nothing disturbs, as far as it goes.
fn tokens(client: &Client, seen: &Seen) -> Vec<(&'static str, bool)> {
    let (reference, finish) = worker::reference(&client.request);
    let mut rules = vec![("tokens are lost or doubled", reference.starts_with(&seen.tokens))];
    if let Some(last) = &seen.last {
        let is_whole = seen.tokens == reference && last.finish == Some(finish);
        let is_stopped = matches!(client.manner, Manner::StopsAt(_))
            && last.finish == Some(FinishReason::Length);
        rules.push(("it ends early", is_whole || is_stopped));
        let usage = last.usage.unwrap();
        let counted = (usage.prompt_tokens, usage.completion_tokens);
        let expected = (worker::count(&client.request.token_ids), worker::count(&seen.tokens));
        rules.push(("it is counted otherwise", counted == expected));
    }
    rules
}

/// It ends once, in time, and with an error that blames the right one.
fn ends(client: &Client, seen: &Seen) -> Vec<(&'static str, bool)> {
    let leaves = matches!(client.manner, Manner::LeavesAt(_) | Manner::LeavesAfter(_));
    let mut rules = vec![
        ("it has no end", seen.is_over || leaves),
        ("it ends without a last chunk", seen.last.is_some() || seen.error.is_some() || leaves),
    ];
    let is_slow =
        matches!(client.manner, Manner::ReadsSlowly(_) | Manner::KillsAt(_) | Manner::StopsAt(_));
    if let (Some(deadline), false) = (client.deadline, is_slow) {
        // What is complete at the deadline may take a moment to end.
        let latest = deadline + Duration::from_millis(5);
        rules.push(("it ends late", seen.ended_after <= latest));
    }
    let Some(error) = &seen.error else { return rules };
    let is_due = client.deadline.is_some_and(|deadline| seen.ended_after >= deadline);
    rules.push((
        "its error is another's",
        match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Internal => true,
            ErrorKind::Overloaded => error.retry_after().is_some(),
            ErrorKind::DeadlineExceeded => is_due,
            ErrorKind::Cancelled => matches!(client.manner, Manner::KillsAt(_)),
            _ => false,
        },
    ));
    let is_own = matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Cancelled);
    let interrupted = Interrupted::of(error).map(|interrupted| interrupted.tokens);
    let is_said = match interrupted {
        Some(tokens) => tokens == seen.tokens.len(),
        None => is_own || seen.tokens.is_empty(),
    };
    rules.push(("it does not say how much there was", is_said));
    rules.push(("it could be asked twice", seen.tokens.is_empty() || !error.is_retryable()));
    rules
}

fn is_told(seen: &Seen, outcome: Outcome) -> bool {
    match &seen.error {
        _ if seen.last.is_some() => outcome == Outcome::Complete,
        Some(error) if error.kind() == ErrorKind::Cancelled => outcome == Outcome::Cancelled,
        Some(error) => outcome == Outcome::Failed(error.kind()),
        None => outcome == Outcome::Cancelled,
    }
}

/// Workers are asked for what the configuration allows.
fn asked(plan: &Plan, stages: &[&Stage]) -> Vec<(&'static str, bool)> {
    let count = |is: fn(&Stage) -> bool| stages.iter().filter(|stage| is(stage)).count();
    let prefills = count(|stage| *stage == Stage::Prefill);
    let whole = count(|stage| *stage == Stage::Full);
    let decodes = stages.len() - prefills - whole;
    let (config, [prefill_workers, _]) = (&plan.config, plan.workers);
    let is_calm = plan.faults_max == 0 && plan.departures.is_empty() && has_room(plan);
    vec![
        ("it is split", config.split != Split::Never || prefills + decodes == 0),
        ("it is not split", {
            config.split != Split::Always || prefill_workers == 0 || !is_calm || whole == 0
        }),
        ("it is tried again", {
            config.fallback != Fallback::Fail || prefills + whole <= 1 && decodes <= 1
        }),
        ("it is prefilled locally", {
            config.split != Split::Always || config.fallback != Fallback::OtherWorker || whole == 0
        }),
        ("it is asked for without end", stages.len() <= 100),
    ]
}

/// Whoever has to wait is let in, and waits for long enough.
fn has_room(plan: &Plan) -> bool {
    plan.queues.iter().flatten().all(|queue| queue.is_roomy)
}

/// A single fault is made good where there is another worker, and time.
fn must_survive(plan: &Plan, client: &Client) -> bool {
    let [prefill, decode] = plan.workers;
    let config = &plan.config;
    let has_others = match config.fallback {
        Fallback::Fail => false,
        Fallback::OtherWorker => prefill >= 2 && decode >= 2,
        Fallback::LocalPrefill => decode >= 2,
    };
    let is_patient = matches!(client.manner, Manner::Reads | Manner::ReadsSlowly(_));
    let has_time = client.deadline.is_none() && is_patient;
    let has_workers =
        config.split != Split::Always || config.fallback == Fallback::LocalPrefill || prefill >= 1;
    let is_calm = plan.faults_max == 0 && has_workers;
    let is_one = plan.faults_max == 1 && has_others && config.attempts_max >= 2;
    has_time && has_room(plan) && plan.departures.is_empty() && (is_calm || is_one)
}
