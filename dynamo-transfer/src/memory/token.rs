use std::time::Duration;

use tokio::time::Instant;

use super::table::{Right, random};
use crate::error::{Error, ErrorKind, Result};

/// What a peer presents besides the id of a region: what it may do, until when, and the proof that
/// the owner said so.
///
/// A token is not stored anywhere: the owner computes the proof again, with a key that never leaves
/// it (BLAKE3 in keyed mode, cut to 128 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// Differs each time memory is registered.
    pub(crate) generation: u64,
    pub(crate) is_writable: bool,
    /// Milliseconds since the owner started, by its own clock; 0 stands for never.
    pub(crate) expires_ms: u64,
    pub(crate) proof: u128,
}

/// Makes and checks the tokens of one agent.
pub(crate) struct Mint {
    key: [u8; blake3::KEY_LEN],
    started: Instant,
}

impl Mint {
    pub(super) fn new() -> Result<Self> {
        let mut key = [0; blake3::KEY_LEN];
        for part in key.chunks_exact_mut(8) {
            part.copy_from_slice(&random()?.to_le_bytes());
        }
        Ok(Self { key, started: Instant::now() })
    }

    /// Makes a token for region `id`, good for `ttl`, or for ever.
    pub(super) fn issue(
        &self,
        (id, generation): (u64, u64),
        is_writable: bool,
        ttl: Option<Duration>,
    ) -> Token {
        let expires_ms = ttl.map_or(0, |ttl| {
            let at = self.started.elapsed().saturating_add(ttl);
            u64::try_from(at.as_millis()).unwrap_or(u64::MAX).max(1)
        });
        let token = Token { generation, is_writable, expires_ms, proof: 0 };
        Token { proof: self.proof(id, &token), ..token }
    }

    /// Checks that `token` is ours, still good, and for this.
    pub(super) fn check(&self, id: u64, token: &Token, right: Right) -> Result<()> {
        let denied = |message| Err(Error::new(ErrorKind::PermissionDenied, message));
        // Compared as a whole, whatever the first difference is.
        if self.proof(id, token) ^ token.proof != 0 {
            return denied(format!("token of region {id} is wrong"));
        }
        if token.expires_ms != 0 && self.started.elapsed() >= millis(token.expires_ms) {
            return denied(format!("token of region {id} has expired"));
        }
        if right == Right::Write && !token.is_writable {
            return denied(format!("token of region {id} does not grant writing"));
        }
        Ok(())
    }

    /// Returns when a token expires; far away if that is beyond what a clock shows.
    #[cfg(target_os = "linux")]
    pub(super) fn expiry(&self, token: &Token) -> Option<Instant> {
        let far = || self.started + FAR;
        (token.expires_ms != 0)
            .then(|| self.started.checked_add(millis(token.expires_ms)).unwrap_or_else(far))
    }

    fn proof(&self, id: u64, token: &Token) -> u128 {
        let mut said = [0; 25];
        said[..8].copy_from_slice(&id.to_le_bytes());
        said[8..16].copy_from_slice(&token.generation.to_le_bytes());
        said[16..24].copy_from_slice(&token.expires_ms.to_le_bytes());
        said[24] = u8::from(token.is_writable);
        let mut proof = [0; 16];
        proof.copy_from_slice(&blake3::keyed_hash(&self.key, &said).as_bytes()[..16]);
        u128::from_le_bytes(proof)
    }
}

/// Longer than any process lives.
#[cfg(target_os = "linux")]
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(mint: &Mint, id: u64, token: &Token, right: Right) -> String {
        let error = mint.check(id, token, right).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        error.message().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_what_it_says_and_for_nothing_else() {
        let mint = Mint::new().unwrap();
        let token = mint.issue((3, 7), false, Some(Duration::from_secs(1)));
        mint.check(3, &token, Right::Read).unwrap();
        assert!(denial(&mint, 3, &token, Right::Write).contains("writing"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(denial(&mint, 3, &token, Right::Read).contains("expired"));
        let lasting = mint.issue((3, 7), true, None);
        mint.check(3, &lasting, Right::Write).unwrap();
    }

    #[test]
    fn nothing_of_a_token_can_be_changed() {
        let mint = Mint::new().unwrap();
        let token = mint.issue((3, 7), false, Some(Duration::from_secs(60)));
        let forged = [
            Token { generation: 8, ..token },
            Token { is_writable: true, ..token },
            Token { expires_ms: 0, ..token },
            Token { expires_ms: token.expires_ms + 1, ..token },
            Token { proof: token.proof ^ 1, ..token },
        ];
        for token in forged {
            assert!(denial(&mint, 3, &token, Right::Read).contains("wrong"), "{token:?}");
        }
        assert!(denial(&mint, 4, &token, Right::Read).contains("wrong"));
        assert!(denial(&Mint::new().unwrap(), 3, &token, Right::Read).contains("wrong"));
    }
}
