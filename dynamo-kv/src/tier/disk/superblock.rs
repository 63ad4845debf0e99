//! What says whose a directory is, kept twice.

use std::sync::Arc;

use dynamo_transfer::file::{FileRange, FileRegion, FileStore};
use dynamo_transfer::{Error, ErrorKind};
use tokio_util::task::TaskTracker;

use super::directory::{Directory, Kept};
use super::error::{DiskError, Foreign};
use super::format::{Geometry, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock};

/// What a directory begins with.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Foreign(Foreign),
    /// The device fails to read what it begins with.
    Unreadable(Error),
    Ours {
        era: u64,
        /// Both superblocks say so.
        is_whole: bool,
    },
}

/// Reads the superblocks, if there are any.
pub(super) async fn read(
    dir: &Arc<Directory>,
    tasks: &TaskTracker,
    files: &FileStore,
) -> Result<Found, DiskError> {
    let Some(manifest) = dir.run(tasks, Directory::open_superblocks).await? else {
        return Ok(Found::Nothing);
    };
    let [first, second] = SUPERBLOCK_OFFSETS;
    let first = read_one(files, &manifest, first, &dir.geometry).await?;
    let second = read_one(files, &manifest, second, &dir.geometry).await?;
    Ok(first.beside(second))
}

/// Begins an era: writes both, also if one cannot be written, and fails then.
pub(super) async fn write(
    files: &FileStore,
    manifest: &FileRegion,
    dir: &Arc<Directory>,
    era: u64,
) -> dynamo_transfer::Result<()> {
    let mut outcome = Ok(());
    for offset in SUPERBLOCK_OFFSETS {
        let bytes = Superblock { geometry: dir.geometry, era }.encode();
        let place = FileRange { offset, at: 0, len: bytes.len() };
        let kept = Kept { bytes, _dir: Arc::clone(dir) };
        outcome = outcome.and(files.write(manifest, &[place], kept).await.0.map(drop));
    }
    outcome
}

async fn read_one(
    files: &FileStore,
    manifest: &FileRegion,
    offset: u64,
    geometry: &Geometry,
) -> Result<Found, DiskError> {
    if offset + SUPERBLOCK_BYTES as u64 > manifest.len() {
        return Ok(Found::Foreign(Foreign::Unknown));
    }
    let place = FileRange { offset, at: 0, len: SUPERBLOCK_BYTES };
    let (read, bytes) = files.read(manifest, &[place], [0u8; SUPERBLOCK_BYTES]).await;
    match (read, bytes) {
        (Err(error), _) if error.kind() == ErrorKind::Closed => Err(error.into()),
        (Err(error), _) => Ok(Found::Unreadable(error)),
        (Ok(_), bytes) => Ok(match Superblock::decode(&bytes.unwrap_or([0; _]), geometry) {
            Ok(era) => Found::Ours { era, is_whole: true },
            Err(foreign) => Found::Foreign(foreign),
        }),
    }
}

impl Found {
    /// Returns what the first superblock comes to, beside the second one: a damaged one counts for
    /// nothing beside a whole one, and of two whole ones the first was written first.
    fn beside(self, second: Self) -> Self {
        use Foreign::{Fingerprint, Geometry, Unknown};
        match (self, second) {
            (Self::Ours { era, .. }, second) => {
                let is_whole = matches!(second, Self::Ours { era: other, .. } if other == era);
                Self::Ours { era, is_whole }
            }
            // Of another version, or damaged where that is said.
            (first @ Self::Foreign(Fingerprint(_) | Geometry { .. }), _) => first,
            (_, Self::Ours { era, .. }) => Self::Ours { era, is_whole: false },
            (Self::Foreign(Unknown) | Self::Unreadable(_), second @ Self::Foreign(_)) => second,
            (first, _) => first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(era: u64, is_whole: bool) -> Found {
        Found::Ours { era, is_whole }
    }

    #[test]
    fn a_damaged_superblock_counts_for_nothing_beside_a_whole_one() {
        let said = |first: Found, second: Found| format!("{:?}", first.beside(second));
        let is = |found: Found| format!("{found:?}");
        let foreign = Found::Foreign;
        let other = Foreign::Fingerprint(1);
        assert_eq!(said(ours(1, true), ours(1, true)), is(ours(1, true)));
        assert_eq!(said(ours(2, true), ours(1, true)), is(ours(2, false)), "a clear was cut short");
        for damaged in [Foreign::Unknown, Foreign::Version(9)] {
            assert_eq!(said(ours(1, true), foreign(damaged)), is(ours(1, false)));
            assert_eq!(said(foreign(damaged), ours(1, true)), is(ours(1, false)));
            assert_eq!(said(foreign(other), foreign(damaged)), is(foreign(other)));
        }
        assert_eq!(said(foreign(other), ours(1, true)), is(foreign(other)));
        assert_eq!(said(foreign(Foreign::Unknown), foreign(other)), is(foreign(other)));
    }
}
