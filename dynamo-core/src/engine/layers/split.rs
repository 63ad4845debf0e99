use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::engine::{Context, Engine, ResponseStream, SharedEngine};
use crate::error::{Error, ErrorKind, Result};

/// Shares requests out over engines by weight; a key always goes to the same one.
///
/// The choice is by rendezvous hashing with weights: no state, the same in every process. A weight
/// that grows takes keys to its arm and moves no other; one that shrinks only takes keys away.
/// Requests without a key are shared out by their id, so that attempts at one request stay together.
///
/// # Examples
/// ```
/// use dynamo_core::engine::layers::Split;
/// use dynamo_core::{Context, Engine, ResponseStream, engine_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_core::Result<()> {
/// let version = |name: &'static str| {
///     engine_fn(move |ctx: Context, (): ()| async move {
///         Ok(ResponseStream::from_items(&ctx, [name]))
///     })
/// };
/// let split = Split::new()
///     .with_arm("stable", 95, version("stable"))?
///     .with_arm("canary", 5, version("canary"))?
///     .with_metadata_key("user");
/// let ctx = || Context::new().with_metadata("user", "ada");
/// let first = split.generate(ctx(), ()).await?.collect().await?;
/// assert_eq!(split.generate(ctx(), ()).await?.collect().await?, first);
///
/// split.set_weights([("stable", 0), ("canary", 100)])?;
/// assert_eq!(split.generate(ctx(), ()).await?.collect().await?, ["canary"]);
/// # Ok(())
/// # }
/// ```
pub struct Split<Req, Resp> {
    arms: Vec<Arm<Req, Resp>>,
    /// In the order of the arms.
    weights: RwLock<Vec<u32>>,
    key: KeyOf<Req>,
}

struct Arm<Req, Resp> {
    name: String,
    seed: u64,
    engine: SharedEngine<Req, Resp>,
}

type KeyOf<Req> =
    Box<dyn for<'a> Fn(&'a Context, &'a Req) -> Option<Cow<'a, str>> + Send + Sync + 'static>;

impl<Req: Send + 'static, Resp: Send + 'static> Split<Req, Resp> {
    /// Creates a split over no engine yet, by the ids of the requests.
    pub fn new() -> Self {
        Self { arms: Vec::new(), weights: RwLock::default(), key: Box::new(|_, _| None) }
    }

    /// Adds an engine named `name`, which gets `weight` parts of the requests.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if the name is empty, and
    /// [`Conflict`](ErrorKind::Conflict) if it is taken.
    pub fn with_arm(
        mut self,
        name: impl Into<String>,
        weight: u32,
        engine: impl Engine<Request = Req, Response = Resp>,
    ) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::invalid("an arm of a split needs a name"));
        }
        if self.arms.iter().any(|arm| arm.name == name) {
            return Err(Error::new(ErrorKind::Conflict, format!("arm {name} of a split")));
        }
        let seed = xxh3_64_with_seed(name.as_bytes(), 0);
        self.arms.push(Arm { name, seed, engine: Arc::new(engine) });
        self.weights.get_mut().unwrap_or_else(PoisonError::into_inner).push(weight);
        Ok(self)
    }

    /// Keeps together what `key` gives the same text; `None` shares a request out by its id.
    #[must_use]
    pub fn with_key(
        mut self,
        key: impl for<'a> Fn(&'a Context, &'a Req) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        self.key = Box::new(key);
        self
    }

    /// Keeps together what has the same metadata under `name`.
    #[must_use]
    pub fn with_metadata_key(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.with_key(move |ctx, _| ctx.metadata().get(&name).map(|key| Cow::Borrowed(&**key)))
    }

    /// Changes the weights of the named arms, all at once; the others keep theirs.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if there is no such arm, and
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if one is named twice or no weight above 0
    /// would be left; nothing has changed then.
    pub fn set_weights<'a>(&self, weights: impl IntoIterator<Item = (&'a str, u32)>) -> Result<()> {
        let mut named = HashSet::new();
        let mut current = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = current.clone();
        for (name, weight) in weights {
            let at = self.arms.iter().position(|arm| arm.name == name);
            let Some(slot) = at.and_then(|at| changed.get_mut(at)) else {
                return Err(Error::new(ErrorKind::NotFound, format!("arm {name} of a split")));
            };
            if !named.insert(name) {
                return Err(Error::invalid(format!("two weights for arm {name} of a split")));
            }
            *slot = weight;
        }
        if changed.iter().all(|weight| *weight == 0) {
            return Err(Error::invalid("a split needs a weight above 0"));
        }
        *current = changed;
        Ok(())
    }

    /// Returns the arms and their weights.
    pub fn weights(&self) -> Vec<(&str, u32)> {
        let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        self.arms.iter().zip(&*weights).map(|(arm, weight)| (&*arm.name, *weight)).collect()
    }

    /// Returns the name of the arm that a request goes to; `None` if no arm has a weight above 0.
    pub fn choose(&self, ctx: &Context, request: &Req) -> Option<&str> {
        self.arm(ctx, request).map(|arm| &*arm.name)
    }

    fn arm(&self, ctx: &Context, request: &Req) -> Option<&Arm<Req, Resp>> {
        let key = (self.key)(ctx, request);
        let key = key.as_deref().unwrap_or_else(|| ctx.id().as_str()).as_bytes();
        let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        let scored = self.arms.iter().zip(&*weights).filter(|(_, weight)| **weight > 0);
        let scored = scored.map(|(arm, weight)| (score(arm.seed, key, *weight), arm));
        scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, arm)| arm)
    }
}

/// The score of weighted rendezvous hashing (Schindelhauer and Schomaker 2005, in its logarithmic
/// form): the highest wins, and each wins as often as its weight says.
fn score(seed: u64, key: &[u8], weight: u32) -> f64 {
    // 52 bits and a half: never 0, never 1.
    let drawn = (xxh3_64_with_seed(key, seed) >> 12) as f64 + 0.5;
    -f64::from(weight) / (drawn / 2f64.powi(52)).ln()
}

impl<Req: Send + 'static, Resp: Send + 'static> Default for Split<Req, Resp> {
    fn default() -> Self {
        Self::new()
    }
}

impl<Req: Send + 'static, Resp: Send + 'static> Engine for Split<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let Some(arm) = self.arm(&ctx, &request) else {
            let message = "no arm of the split has a weight above 0";
            return Err(Error::new(ErrorKind::Unavailable, message).unprocessed());
        };
        tracing::trace!(request = %ctx.id(), arm = %arm.name, "split");
        arm.engine.generate(ctx, request).await
    }
}

impl<Req: Send + 'static, Resp: Send + 'static> fmt::Debug for Split<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split").field("weights", &self.weights()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::engine_fn;

    const KEYS: usize = 20_000;

    fn split(weights: &[(&'static str, u32)]) -> Split<u32, &'static str> {
        weights.iter().fold(Split::new(), |split, (name, weight)| {
            let name = *name;
            let engine = engine_fn(move |ctx: Context, _: u32| async move {
                Ok(ResponseStream::from_items(&ctx, [name]))
            });
            split.with_arm(name, *weight, engine).unwrap()
        })
    }

    fn chosen(split: &Split<u32, &'static str>) -> Vec<String> {
        let ctx = |key| Context::new().with_metadata("user", format!("user {key}"));
        (0..KEYS).map(|key| split.choose(&ctx(key), &0).unwrap().to_owned()).collect()
    }

    fn share(chosen: &[String], name: &str) -> usize {
        chosen.iter().filter(|arm| *arm == name).count() * 1000 / KEYS
    }

    #[test]
    fn each_arm_gets_its_weight_and_a_key_stays_where_it_is() {
        let split = split(&[("a", 70), ("b", 25), ("c", 5), ("off", 0)]).with_metadata_key("user");
        let before = chosen(&split);
        for (name, thousandths) in [("a", 700), ("b", 250), ("c", 50)] {
            let got = share(&before, name);
            assert!(got.abs_diff(thousandths) <= 10, "{name} got {got} of a thousand");
        }
        assert_eq!(share(&before, "off"), 0);
        assert_eq!(chosen(&split), before);
    }

    #[test]
    fn a_change_of_weights_moves_the_keys_it_has_to_and_no_other() {
        let split = split(&[("a", 90), ("b", 10), ("c", 0)]).with_metadata_key("user");
        let before = chosen(&split);
        split.set_weights([("b", 30)]).unwrap();
        assert_eq!(split.weights(), [("a", 90), ("b", 30), ("c", 0)]);
        let after = chosen(&split);
        let moved: Vec<_> = before.iter().zip(&after).filter(|(from, to)| from != to).collect();
        assert!(moved.iter().all(|(from, to)| *from == "a" && *to == "b"));
        // From a tenth to a quarter.
        assert!((moved.len() * 1000 / KEYS).abs_diff(150) <= 10);
        // The same parts, counted otherwise, are the same choice.
        split.set_weights([("a", 9), ("b", 3)]).unwrap();
        assert_eq!(chosen(&split), after);
        split.set_weights([("a", 0), ("b", 0), ("c", 1)]).unwrap();
        assert_eq!(share(&chosen(&split), "c"), 1000);
    }

    #[tokio::test]
    async fn a_key_may_come_from_the_request_and_without_one_the_id_decides() {
        let split = split(&[("a", 1), ("b", 1)])
            .with_key(|_, n| (*n > 0).then(|| Cow::Owned(n.to_string())));
        let mut seen = HashSet::new();
        for n in 1..50 {
            let ask = async || split.generate(Context::new(), n).await.unwrap().collect().await;
            let answer = ask().await.unwrap();
            assert_eq!(ask().await.unwrap(), answer);
            seen.extend(answer);
        }
        assert_eq!(seen.len(), 2);
        let by_id = |id: &str| split.choose(&Context::with_id(id.into()), &0).unwrap().to_owned();
        assert_eq!(by_id("7f3"), by_id("7f3"));
        let ids = (0..50).map(|id| by_id(&id.to_string()));
        assert_eq!(ids.collect::<HashSet<_>>().len(), 2);
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let empty = || {
            engine_fn(
                |ctx: Context, _: u32| async move { Ok(ResponseStream::from_items(&ctx, ["c"])) },
            )
        };
        let taken = split(&[("a", 1)]).with_arm("a", 1, empty()).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict);
        let unnamed = split(&[]).with_arm("", 1, empty()).unwrap_err();
        assert_eq!(unnamed.kind(), ErrorKind::InvalidArgument);

        let split = split(&[("a", 1), ("b", 2)]);
        for (weights, kind) in [
            (vec![("a", 5), ("z", 1)], ErrorKind::NotFound),
            (vec![("a", 0), ("b", 0)], ErrorKind::InvalidArgument),
            (vec![("a", 5), ("a", 6)], ErrorKind::InvalidArgument),
        ] {
            assert_eq!(split.set_weights(weights).unwrap_err().kind(), kind);
            assert_eq!(split.weights(), [("a", 1), ("b", 2)]);
        }
        let nowhere = Split::<u32, &str>::new().generate(Context::new(), 1).await.unwrap_err();
        assert!(nowhere.kind() == ErrorKind::Unavailable && nowhere.is_retryable());
    }
}
