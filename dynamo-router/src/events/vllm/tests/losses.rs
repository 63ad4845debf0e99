use std::sync::Arc;

use dynamo_core::protocol::{BlockSize, KvEvent};
use proptest::prelude::*;

use super::engine::{Act, Fold, acts};
use super::publisher::Publisher;
use super::{WORKER, config};
use crate::events::vllm::intake::{Intake, Message};
use crate::events::vllm::pack::Malformed;
use crate::events::vllm::sink::Sink;

const BLOCK_SIZE: BlockSize = BlockSize::new(4).unwrap();

#[derive(Debug, Clone)]
enum Step {
    Arrives(Act),
    IsLost(Act),
    Reconnects,
    Restarts,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    acts(60).prop_flat_map(|acts| {
        let chances = prop::collection::vec(0..12_u8, acts.len());
        chances.prop_map(move |chances| {
            let step = |(act, chance): (&Act, u8)| match chance {
                0 => Step::Restarts,
                1 => Step::Reconnects,
                2..=4 => Step::IsLost(act.clone()),
                _ => Step::Arrives(act.clone()),
            };
            acts.iter().zip(chances).map(step).collect()
        })
    })
}

fn intake(sink: impl FnMut(KvEvent)) -> Intake<impl Sink> {
    Intake::new(config("tcp://*:1", 4), sink, Arc::default())
}

/// Does what the feed does, with a publisher at hand.
fn catch_up(intake: &mut Intake<impl Sink>, publisher: &Publisher, has_replay: bool) {
    let mut asks = has_replay;
    while asks {
        let from = intake.ask_from();
        let answers: Vec<_> = publisher.buffer.iter().filter(|it| it.number >= from).collect();
        asks = intake.prove(answers.first().copied());
        if !asks {
            answers.into_iter().for_each(|message| intake.replayed(message));
            intake.replay_ended(true);
        }
    }
    intake.doubt();
}

fn arrive(
    intake: &mut Intake<impl Sink>,
    publisher: &Publisher,
    has_replay: bool,
    message: &Message,
) {
    if has_replay && intake.is_behind(message) {
        catch_up(intake, publisher, has_replay);
    }
    intake.live(message);
}

proptest! {
    #[test]
    fn whatever_is_lost_the_index_never_says_more_than_the_truth(
        steps in steps(), has_replay: bool, buffer_max in prop::sample::select(vec![2, 8, 1000]),
    ) {
        let mut publisher = Publisher::new(4, buffer_max);
        let fold = std::cell::RefCell::new(Fold::default());
        let mut intake = intake(|event| fold.borrow_mut().take(WORKER, &event));
        intake.connected();
        catch_up(&mut intake, &publisher, has_replay);
        for step in &steps {
            match step {
                Step::IsLost(act) => {
                    publisher.act(act);
                    continue;
                }
                Step::Arrives(act) => {
                    let message = publisher.act(act);
                    arrive(&mut intake, &publisher, has_replay, &message);
                }
                Step::Reconnects | Step::Restarts => {
                    if matches!(step, Step::Restarts) {
                        publisher.restart();
                    }
                    intake.connected();
                    catch_up(&mut intake, &publisher, has_replay);
                }
            }
            let truth = publisher.engine.truth(BLOCK_SIZE);
            prop_assert!(fold.borrow().known.is_subset(&truth), "after {step:?}");
        }
        let last = publisher.message(&[]);
        arrive(&mut intake, &publisher, has_replay, &last);
        if has_replay && buffer_max == 1000 {
            prop_assert_eq!(&fold.borrow().known, &publisher.engine.truth(BLOCK_SIZE));
        }
    }
}

fn store(publisher: &mut Publisher, content: u8) -> Message {
    let contents = vec![content];
    publisher.act(&Act::Store { adapter: 0, contents, start: 0, is_host: false })
}

#[test]
fn a_message_that_is_none_makes_what_is_known_doubtful() {
    let mut publisher = Publisher::new(4, 8);
    let fold = std::cell::RefCell::new(Fold::default());
    let mut intake = intake(|event| fold.borrow_mut().take(WORKER, &event));
    intake.live(&store(&mut publisher, 0));
    let mut bad = store(&mut publisher, 1);
    bad.payload.pop();
    intake.live(&bad);
    assert!(fold.borrow().known.is_empty());
    intake.live(&store(&mut publisher, 2));
    assert_eq!(fold.borrow().known.len(), 1);
    intake.malformed(Malformed { what: "nothing", at: 0 });
    let shown = Arc::default();
    let mut other = Intake::new(config("tcp://*:1", 4), |_| {}, Arc::clone(&shown));
    other.live(&bad);
    other.malformed(Malformed { what: "nothing", at: 0 });
    other.show();
    let stats = shown.lock().unwrap().clone();
    assert_eq!((stats.decode_errors, stats.gaps, stats.messages), (2, 1, 0));
    let problem = stats.last_problem.unwrap();
    assert_eq!(problem.to_string(), "a message: nothing at byte 0");
}

#[test]
fn a_replay_that_is_not_there_yet_is_asked_again_with_the_first_message() {
    let mut publisher = Publisher::new(4, 100);
    let fold = std::cell::RefCell::new(Fold::default());
    let mut intake = intake(|event| fold.borrow_mut().take(WORKER, &event));
    intake.connected();
    intake.ask_from();
    intake.replay_ended(false);
    intake.doubt();
    // Nobody was subscribed to these.
    (0..3).for_each(|content| _ = store(&mut publisher, content));
    let message = store(&mut publisher, 0);
    arrive(&mut intake, &publisher, true, &message);
    assert_eq!(fold.borrow().known, publisher.engine.truth(BLOCK_SIZE));
    assert_eq!(fold.borrow().known.len(), 3);
}

#[test]
fn messages_and_answers_have_their_parts() {
    let number = 5_u64.to_be_bytes().to_vec();
    let payload = b"x".to_vec();
    let message = Message { number: 5, payload: payload.clone() };
    let parts = vec![b"kv".to_vec(), number.clone(), payload.clone()];
    assert_eq!(Message::published(parts.clone()), Ok(message.clone()));
    assert_eq!(Message::replayed(parts), Ok(Some(message.clone())));
    assert_eq!(
        Message::replayed(vec![Vec::new(), number.clone(), payload.clone()]),
        Ok(Some(message))
    );
    let end = vec![Vec::new(), u64::MAX.to_be_bytes().to_vec(), Vec::new()];
    assert_eq!(Message::replayed(end.clone()), Ok(None));
    assert!(Message::published(end).is_err(), "the end of a replay is no message");
    for parts in [vec![], vec![payload.clone()], vec![number, payload.clone()]] {
        assert!(Message::published(parts).is_err());
    }
    assert!(Message::published(vec![Vec::new(), b"short".to_vec(), payload]).is_err());
    assert!(Message::replayed(vec![]).is_err());
}
