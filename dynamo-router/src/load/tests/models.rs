//! Every order in which one books while another releases and a third lets expire.

use std::sync::Arc;

use loom::thread;

use crate::load::{Booked, Claim, Load, Row};

const CLAIM: Claim = Claim { prefill_tokens: 7, blocks: 2 };

fn held(requests: usize, prefill_tokens: usize) -> Load {
    Load { requests, prefill_tokens, blocks: requests * 2, ..Load::default() }
}

#[test]
fn reserving_releasing_and_expiring_leave_what_is_held() {
    loom::model(|| {
        let row = Arc::new(Row::default());
        assert!(row.reserve_anyway(CLAIM));
        let old = row.open(CLAIM, 1);
        let releases = thread::spawn({
            let row = Arc::clone(&row);
            move || row.close(old)
        });
        let expires = thread::spawn({
            let row = Arc::clone(&row);
            move || row.expire(1)
        });
        let seen = row.booked();
        let is_reserved = row.reserve(seen, CLAIM).is_ok() || row.reserve_anyway(CLAIM);
        assert!(is_reserved);
        let own = row.open(CLAIM, 2);
        let (was_live, expired) = (releases.join().unwrap(), expires.join().unwrap());
        // One of the two has released it, never both.
        assert_eq!(u64::from(was_live) + expired, 1);
        assert_eq!(row.load(row.booked(), 0, 0), held(1, 7));
        assert!(row.close(own));
        assert_eq!(row.load(row.booked(), 0, 0), Load::default());
    });
}

#[test]
fn progress_against_expiry_counts_the_request_once() {
    loom::model(|| {
        let row = Arc::new(Row::default());
        assert!(row.reserve_anyway(CLAIM));
        let lease = row.open(CLAIM, 1);
        let expires = thread::spawn({
            let row = Arc::clone(&row);
            move || row.expire(1)
        });
        row.progress(lease, 2, false);
        expires.join().unwrap();
        assert_eq!(row.load(row.booked(), 0, 0), held(1, 7));
        assert!(row.close(lease));
        assert_eq!(row.load(row.booked(), 0, 0), Load::default());
    });
}

#[test]
fn of_two_that_saw_the_same_one_has_to_look_again() {
    loom::model(|| {
        let row = Arc::new(Row::default());
        let reserve = |row: &Row| row.reserve(Booked::default(), CLAIM).is_ok();
        let other = thread::spawn({
            let row = Arc::clone(&row);
            move || reserve(&row)
        });
        let mine = reserve(&row);
        assert!(mine != other.join().unwrap());
        assert_eq!(row.booked().requests(), 1);
    });
}
