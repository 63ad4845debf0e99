//! What is booked on whom, from the choice until the stream ends.

mod ledger;

pub use ledger::{Booking, Load};

pub(crate) use ledger::Ledger;
