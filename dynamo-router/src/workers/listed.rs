use dynamo_core::Instance;

/// What a list of instances says of who there is, in whatever order: ids, incarnations and labels.
///
/// Two lists that differ have the same by chance only, once in 2^64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Listed {
    count: usize,
    sum: u64,
}

impl Listed {
    pub(super) fn of(instances: &[Instance]) -> Self {
        let sum = instances.iter().fold(0u64, |sum, instance| sum.wrapping_add(said(instance)));
        Self { count: instances.len(), sum }
    }
}

fn said(instance: &Instance) -> u64 {
    let word = mixed(mixed(instance.id.0.wrapping_add(SPREAD)) ^ instance.incarnation);
    let labels = instance.labels.iter();
    labels.fold(word, |word, (label, value)| with_text(with_text(word, label), value))
}

fn with_text(word: u64, text: &str) -> u64 {
    let (eights, rest) = text.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let parts = eights.iter().chain([&last]).map(|bytes| u64::from_le_bytes(*bytes));
    parts.fold(mixed(word ^ text.len() as u64), |word, part| mixed(word ^ part))
}

/// Spreads what differs in one bit over all of them.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(SPREAD);
    (word ^ (word >> 29)).wrapping_mul(SPREAD) ^ (word >> 32)
}

/// The golden ratio's bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::instance;

    fn zoned(id: u64, zone: &str) -> Instance {
        let mut instance = instance(id);
        instance.labels.insert("zone".into(), zone.into());
        instance
    }

    #[test]
    fn the_order_says_nothing_and_all_else_does() {
        let listed = Listed::of(&[zoned(1, "a"), zoned(2, "b"), instance(3)]);
        assert_eq!(listed, Listed::of(&[instance(3), zoned(1, "a"), zoned(2, "b")]));
        let newer = Instance { incarnation: 1, ..zoned(1, "a") };
        let others = [
            vec![zoned(1, "a"), zoned(2, "b")],
            vec![zoned(1, "b"), zoned(2, "a"), instance(3)],
            vec![zoned(1, "a"), zoned(2, "b"), zoned(3, "")],
            vec![newer, zoned(2, "b"), instance(3)],
            vec![zoned(1, "a"), zoned(2, "b"), instance(4)],
        ];
        others.iter().for_each(|other| assert_ne!(listed, Listed::of(other)));
    }
}
