use dynamo_core::protocol::HandoffTicket;

use super::message::Message;
use super::ticket::{Ticket, checksum};

/// A ticket that is taken is written as the same bytes; also behind a checksum that is right.
///
/// # Panics
/// If not.
pub fn fuzz_ticket(data: &[u8]) {
    let summed = [data, &checksum(data)].concat();
    for bytes in [data, &summed] {
        let ticket = HandoffTicket::new(bytes.to_vec());
        if let Ok(taken) = Ticket::decode(&ticket) {
            assert_eq!(taken.encode(), ticket);
        }
    }
}

/// A message between owner and puller that is taken is written as the same bytes.
///
/// # Panics
/// If not.
pub fn fuzz_message(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        assert_eq!(message.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::corpus::inputs;

    /// They were not written by the code that reads them.
    #[test]
    fn what_is_kept_is_taken() {
        for body in inputs("handoff_ticket") {
            let ticket = [&body[..], &checksum(&body)].concat();
            Ticket::decode(&HandoffTicket::new(ticket)).unwrap();
        }
        for body in inputs("handoff_message") {
            Message::decode(&body).unwrap();
        }
    }
}
