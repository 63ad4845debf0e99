//! Blocks that are moved at once.

use std::future::Future;

use dynamo_transfer::{Error, Result};

/// Cuts a list into runs of so many.
pub(super) fn runs<T>(all: Vec<T>, run_blocks: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = all.into_iter();
    std::iter::from_fn(move || {
        let run: Vec<_> = rest.by_ref().take(run_blocks).collect();
        (!run.is_empty()).then_some(run)
    })
}

/// What an operation on one of several parts came to, and the part; `None` if the kernel may still touch
/// it.
pub(super) type Part<T> = Option<(Result<()>, T)>;

/// Has one operation done with all parts, each at its offset of a file, or, if that fails, with one
/// after the other: so that each has an outcome of its own.
pub(super) async fn together<T, F>(
    parts: Vec<(u64, T)>,
    act: impl Fn(Vec<(u64, T)>) -> F,
) -> Vec<Part<T>>
where
    F: Future<Output = (Result<u64>, Option<Vec<T>>)>,
{
    if parts.is_empty() {
        return Vec::new();
    }
    let offsets: Vec<_> = parts.iter().map(|(offset, _)| *offset).collect();
    let (done, back) = act(parts).await;
    let Some(back) = back else { return offsets.iter().map(|_| None).collect() };
    match done {
        Ok(_) => back.into_iter().map(|part| Some((Ok(()), part))).collect(),
        Err(error) => one_by_one(error, offsets.into_iter().zip(back).collect(), act).await,
    }
}

async fn one_by_one<T, F>(
    error: Error,
    mut parts: Vec<(u64, T)>,
    act: impl Fn(Vec<(u64, T)>) -> F,
) -> Vec<Part<T>>
where
    F: Future<Output = (Result<u64>, Option<Vec<T>>)>,
{
    if parts.len() == 1 {
        return parts.pop().map(|(_, part)| Some((Err(error), part))).into_iter().collect();
    }
    let mut outcomes = Vec::with_capacity(parts.len());
    for part in parts {
        let (done, back) = act(vec![part]).await;
        let part = back.into_iter().flatten().next();
        outcomes.push(part.map(|part| (done.map(drop), part)));
    }
    outcomes
}
