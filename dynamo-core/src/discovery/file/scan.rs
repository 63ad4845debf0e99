//! What stands in the folder: who is there, who has died, and what is none of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use super::entry;
use super::folder::{self, Folder, Found, Inode, Stamp};
use crate::discovery::Instance;
use crate::discovery::known::Instances;
use crate::error::Result;
use crate::name::EndpointPath;

/// Looks at the folder again and again; all its calls block.
///
/// It keeps the file of a live instance open: the lock on it tells when its process ends, also if
/// the file has lost its name meanwhile.
pub(super) struct Scanner {
    folder: Folder,
    live: BTreeMap<String, Live>,
    /// What was warned of, and is not looked at again while it stays the same.
    passed_over: BTreeMap<String, Option<Stamp>>,
}

struct Live {
    file: File,
    inode: Inode,
    instance: Instance,
}

impl Scanner {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, live: BTreeMap::new(), passed_over: BTreeMap::new() }
    }

    /// Looks for the instances of the `followed` endpoints; notes the files of dead ones as
    /// `stale`. Whoever was known to live is known to die also while the folder is away.
    pub(super) fn scan(
        &mut self,
        followed: &BTreeSet<EndpointPath>,
        stale: &mut BTreeMap<String, Inode>,
    ) -> Result<()> {
        self.live.retain(|name, live| {
            let is_free = folder::is_free(&live.file).unwrap_or_else(|error| {
                tracing::warn!(%error, name, "cannot tell whether an instance lives");
                false
            });
            if is_free {
                stale.insert(name.clone(), live.inode);
            }
            !is_free && followed.contains(&live.instance.endpoint)
        });
        if followed.is_empty() {
            return Ok(());
        }
        let listed = self.folder.list()?;
        if listed.len() == folder::FILES_MAX {
            tracing::warn!(folder = %self.folder.path.display(), "more files than are looked at");
        }
        let names: BTreeSet<_> = listed.iter().map(|(name, _)| name).collect();
        self.passed_over.retain(|name, _| names.contains(name));
        for (name, number) in &listed {
            let is_known = self.live.get(name).is_some_and(|live| live.inode.1 == *number);
            if is_known || folder::is_own(name) {
                continue;
            }
            match entry::parse(name) {
                None => self.pass_over(name, None, &"no file of an instance"),
                Some((endpoint, _)) if followed.contains(&endpoint) => self.look_at(name, stale),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the live instances of an endpoint.
    pub(super) fn instances(&self, endpoint: &EndpointPath) -> Instances {
        let instances = self.live.values().map(|live| &live.instance);
        let of_it = instances.filter(|instance| instance.endpoint == *endpoint);
        of_it.map(|instance| (instance.id, instance.clone())).collect()
    }

    fn look_at(&mut self, name: &String, stale: &mut BTreeMap<String, Inode>) {
        let stamp = self.folder.stamp(name);
        if stamp.is_some() && self.passed_over.get(name) == Some(&stamp) {
            return;
        }
        match self.folder.look_at(name) {
            Ok(None) => {}
            Ok(Some(Found { file, inode, is_live: true, instance: Ok(instance) })) => {
                self.passed_over.remove(name);
                self.live.insert(name.clone(), Live { file, inode, instance });
            }
            Ok(Some(Found { inode, instance: Ok(_), .. })) => {
                stale.insert(name.clone(), inode);
            }
            // It stays as it is: an instance's file is written once.
            Ok(Some(Found { instance: Err(error), .. })) => self.pass_over(name, stamp, &error),
            // That may pass.
            Err(error) => self.pass_over(name, None, &error),
        }
    }

    fn pass_over(&mut self, name: &String, stamp: Option<Stamp>, why: &dyn std::fmt::Display) {
        if self.passed_over.insert(name.clone(), stamp).is_none() {
            tracing::warn!(%why, file = %self.folder.path.join(name).display(), "passed over");
        }
    }
}
