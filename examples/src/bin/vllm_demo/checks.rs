//! What the demo claims, each said with its figures.

/// Whether all that was checked held.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    failed: usize,
}

impl Checks {
    /// Prints a claim and whether it held.
    pub(crate) fn check(&mut self, held: bool, claim: &str) {
        println!("{} {claim}", if held { "ok    " } else { "FAILED" });
        self.failed += usize::from(!held);
    }

    pub(crate) fn all_held(&self) -> bool {
        self.failed == 0
    }
}
