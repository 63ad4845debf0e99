//! The prompts of the demo: real chat turns, several behind one long system prompt, two follow-up
//! turns, two at once.

/// One request of the demo.
pub(crate) struct Turn {
    pub(crate) system: Option<&'static str>,
    /// The turn whose prompt and answer come before this one.
    pub(crate) follows: Option<usize>,
    pub(crate) user: String,
    pub(crate) max_tokens: u32,
    /// Sent together with the turn before it.
    pub(crate) with_previous: bool,
}

/// Returns the twelve turns.
pub(crate) fn turns() -> Vec<Turn> {
    let turn = |system, user: &str| Turn {
        system,
        follows: None,
        user: user.to_owned(),
        max_tokens: 32,
        with_previous: false,
    };
    let follow_up = |follows, user| Turn { follows: Some(follows), ..turn(None, user) };
    vec![
        turn(Some(LIBRARIAN), "Which of your books would you give to a nine-year-old?"),
        turn(Some(LIBRARIAN), "When are you open on Saturdays?"),
        turn(None, "What is the capital of France?"),
        turn(Some(LIBRARIAN), "I lost a book. What do I have to do?"),
        follow_up(0, "And to her grandfather?"),
        turn(None, "Write one sentence about the sea."),
        turn(Some(LIBRARIAN), "Can I bring my dog?"),
        turn(None, "Explain in one sentence why the sky is blue."),
        turn(Some(LIBRARIAN), "How many books may I borrow at once?"),
        Turn { with_previous: true, ..turn(Some(LIBRARIAN), "Do you have a quiet room?") },
        follow_up(2, "How many people live there?"),
        turn(None, "Name three animals that lay eggs."),
    ]
}

/// Returns the single turn of `--prompt`.
pub(crate) fn single(user: String) -> Vec<Turn> {
    vec![Turn { system: None, follows: None, user, max_tokens: 128, with_previous: false }]
}

const LIBRARIAN: &str = "You are the librarian of a small town library. You answer briefly, \
    kindly and only about the library. These are its rules. The library opens from Tuesday to \
    Friday from ten in the morning to six in the evening, on Saturdays from ten to two, and never \
    on Sundays and Mondays. A reader may borrow up to eight books at once for four weeks, and may \
    extend the loan twice unless another reader waits for the book. A book that comes back late \
    costs ten cents a day, never more than the price of the book. Whoever loses a book pays for a \
    new one or brings the same book in good condition. Dogs stay outside, except dogs that lead \
    the blind. There is a reading room for children on the ground floor, a quiet room with twelve \
    desks on the first floor, and a room for groups that can be booked for two hours. Eating is \
    allowed in the entrance hall only. The library owns nine thousand books, among them a large \
    collection of sea stories, fairy tales from thirty countries, and the history of the town.";
