//! A server is killed while it answers.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use serde_json::Value;
use tokio::sync::watch;

use crate::checks::Checks;
use crate::conversation::stories;
use crate::fleet::{Finished, Fleet};
use crate::pass::{Heard, ask};

/// Has several answers given twice, the second time with one server killed in their midst.
pub(crate) async fn run(fleet: &mut Fleet, checks: &mut Checks) -> Result<()> {
    let stories = stories();
    println!("\n{} stories at once, then again, while a server is killed", stories.len());
    let front_end = fleet.front_end("front-end-crash", "kv", None).await?;
    let address = front_end.address;
    let whole = tell(address, &stories, |_| ()).await;
    let whole = whole.into_iter().collect::<Result<Vec<_>>>().context("nobody was killed yet")?;

    let (seen, mut is_told) = watch::channel(vec![0; stories.len()]);
    // The sender goes with the telling: nobody waits for pieces that cannot come any more.
    let again = tell(address, &stories, move |index| seen.send_modify(|seen| seen[index] += 1));
    let killing = async {
        let all = |seen: &Vec<usize>| seen.iter().all(|pieces| *pieces >= PIECES_BEFORE);
        is_told.wait_for(all).await.context("the stories are over, and not all got far enough")?;
        kill_the_busiest(fleet).await
    };
    let (again, killed) = tokio::join!(again, killing);
    for error in again.iter().filter_map(|heard| heard.as_ref().err()) {
        println!("an answer broke off: {error:#}");
    }
    let killed = killed?;
    let after = tell(address, &stories[..2], |_| ()).await;
    let finished = front_end.end().await?;
    judge(checks, &killed, &whole, &again, &finished);
    let answered = after.iter().filter(|heard| heard.is_ok()).count();
    checks.check(answered == after.len(), &format!("{answered} of {} asked after it", after.len()));
    Ok(())
}

/// Asks for all stories at once; `on_text` is told whose text arrives.
async fn tell(
    front_end: SocketAddr,
    stories: &[Vec<Value>],
    on_text: impl Fn(usize),
) -> Vec<Result<Heard>> {
    let on_text = &on_text;
    let asked = stories
        .iter()
        .enumerate()
        .map(|(index, messages)| ask(front_end, messages, STORY_TOKENS, move || on_text(index)));
    join_all(asked).await
}

/// Kills the server that computes most requests, and says how many.
async fn kill_the_busiest(fleet: &mut Fleet) -> Result<String> {
    let (mut busiest, mut most) = (0, 0.0);
    for (index, engine) in fleet.engines.iter().enumerate() {
        let running = engine.running().await?;
        if running > most {
            (busiest, most) = (index, running);
        }
    }
    let engine = &mut fleet.engines[busiest];
    engine.process.kill().await?;
    println!("killed {} with {most} requests running", engine.name());
    Ok(engine.name().to_owned())
}

fn judge(
    checks: &mut Checks,
    killed: &str,
    whole: &[Heard],
    again: &[Result<Heard>],
    finished: &[Finished],
) {
    let (total, ended) = (whole.len(), again.iter().filter(|heard| heard.is_ok()).count());
    checks.check(
        ended == total,
        &format!("{ended} of {total} answers whole, {} errors at the client", total - ended),
    );
    let moved = finished
        .iter()
        .filter(|it| it.parts.iter().any(|part| part == killed) && it.worker() != killed);
    let moved = moved.count();
    checks.check(moved > 0, &format!("{moved} answers begun by {killed} and ended by the other"));
    let is_same = |(whole, again): &(&Heard, &Result<Heard>)| {
        again.as_ref().is_ok_and(|again| again.text == whole.text)
    };
    let same = whole.iter().zip(again).filter(is_same).count();
    checks.check(same == total, &format!("{same} of {total} texts as without the crash"));
}

/// Tokens of a story.
const STORY_TOKENS: u32 = 64;

/// How much of each story has arrived when the server dies.
const PIECES_BEFORE: usize = 8;
