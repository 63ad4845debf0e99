//! The conversations: users in three groups, each group behind a system prompt of its own. Each turn
//! brings a long note, and what was said before.

use dynamo_core::random::Random;
use serde_json::{Value, json};

/// What a user has said and heard.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    notes: Random,
}

impl Conversation {
    /// Returns those of all users, at their beginning: the same ones each time.
    pub(crate) fn all() -> Vec<Self> {
        let systems: Vec<_> = (0..GROUPS).map(|group| system(group as u64)).collect();
        let conversation = |user: usize| Self {
            messages: vec![said("system", &systems[user % GROUPS])],
            notes: Random::new(1000 + user as u64),
        };
        (0..USERS).map(conversation).collect()
    }

    /// Adds what the user says next.
    pub(crate) fn ask(&mut self) {
        let notes = sentences(&mut self.notes, NOTE_SENTENCES);
        let question = format!("These are my notes. {notes} What is this about, in one sentence?");
        self.messages.push(said("user", &question));
    }

    /// Adds what was answered.
    pub(crate) fn hear(&mut self, answer: &str) {
        self.messages.push(said("assistant", answer));
    }
}

/// Returns in which order users ask in a turn: by chance, but the same one for each policy.
pub(crate) fn order(turn: usize) -> Vec<usize> {
    let mut random = Random::new(ORDER + turn as u64);
    let mut users: Vec<_> = (0..USERS).collect();
    for last in (1..USERS).rev() {
        users.swap(last, random.below(last + 1).unwrap_or(last));
    }
    users
}

/// Returns prompts of which the answers are long.
pub(crate) fn stories() -> Vec<Vec<Value>> {
    let story = |index: u64| {
        let hero = pick(&mut Random::new(index), &WHO);
        let ask = format!("Tell me a long story, number {}, about {hero}.", index + 1);
        vec![said("system", &system(index % GROUPS as u64)), said("user", &ask)]
    };
    (0..STORIES).map(story).collect()
}

fn said(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn system(group: u64) -> String {
    let chronicle = sentences(&mut Random::new(group), SYSTEM_SENTENCES);
    format!("You keep chronicle {} of a small town and answer briefly. {chronicle}", group + 1)
}

/// Returns sentences of some twelve tokens each.
fn sentences(random: &mut Random, count: usize) -> String {
    let sentence = |_| {
        let (who, what, whom) = (pick(random, &WHO), pick(random, &DID), pick(random, &WHOM));
        format!("On {} {who} {what} {whom}.", pick(random, &DAYS))
    };
    (0..count).map(sentence).collect::<Vec<_>>().join(" ")
}

fn pick(random: &mut Random, words: &[&'static str]) -> &'static str {
    random.below(words.len()).map_or("", |index| words[index])
}

pub(crate) const USERS: usize = 12;

pub(crate) const TURNS: usize = 2;

/// With this seed half of the users ask at the same place of both turns, even or odd: round robin
/// among two servers brings those back to who has their first turn, as many as chance would.
const ORDER: u64 = 43;

const GROUPS: usize = 3;

const SYSTEM_SENTENCES: usize = 5;

const NOTE_SENTENCES: usize = 60;

const STORIES: u64 = 6;

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const WHO: [&str; 12] = [
    "the baker",
    "an old sailor",
    "the teacher",
    "a young doctor",
    "the gardener",
    "my neighbour",
    "the miller",
    "a quiet clerk",
    "the mayor",
    "a tall carpenter",
    "the librarian",
    "a lost tourist",
];

const DID: [&str; 10] = [
    "found",
    "painted",
    "sold",
    "repaired",
    "looked for",
    "wrote about",
    "borrowed",
    "carried home",
    "talked about",
    "gave away",
];

const WHOM: [&str; 14] = [
    "a red bicycle",
    "three letters",
    "the wooden bridge",
    "an apple tree",
    "a box of maps",
    "the church clock",
    "a white horse",
    "two silver coins",
    "the market stall",
    "an empty boat",
    "a book of songs",
    "the garden wall",
    "a pair of boots",
    "the winter coats",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_users_come_back_to_the_same_of_two_servers_by_round_robin() {
        let [first, second] = [0, 1].map(|turn| {
            let order = order(turn);
            let mut servers = [0; USERS];
            order.iter().enumerate().for_each(|(place, user)| servers[*user] = place % 2);
            servers
        });
        let same = first.iter().zip(&second).filter(|(first, second)| first == second).count();
        assert_eq!(same, USERS / 2);
    }
}
