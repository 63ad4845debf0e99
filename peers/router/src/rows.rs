//! The rows that come of it all: our figures beside what is aimed at and beside those of peers.

use anyhow::Result;

use crate::figures::Figure;
use crate::table::Table;
use crate::targets;

pub struct Rows<'a> {
    table: Table,
    /// Only workloads whose names have this in them.
    only: Option<&'a str>,
}

impl<'a> Rows<'a> {
    pub fn new(only: Option<&'a str>) -> Self {
        Self { table: Table::default(), only }
    }

    pub fn wants(&self, workload: &str) -> bool {
        self.only.is_none_or(|only| workload.contains(only))
    }

    /// Adds the figures of all who have some: ours come first, and those of the others have the
    /// same order, but may end before.
    pub fn add(
        &mut self,
        workload: &str,
        figures: impl Iterator<Item = (&'static str, Option<Vec<Figure>>)>,
    ) {
        let all: Vec<_> =
            figures.filter_map(|(name, figures)| figures.map(|all| (name, all))).collect();
        let Some(((_, ours), theirs)) = all.split_first() else { return };
        for (at, (metric, figure)) in ours.iter().enumerate() {
            let peers = theirs.iter().filter_map(|(name, all)| Some((*name, all.get(at)?.1)));
            let peers: Vec<_> = peers.collect();
            let target = targets::of(workload, *metric);
            if target.is_some() || peers.is_empty() {
                self.table.row(workload, *metric, *figure, None, target);
            }
            for peer in peers {
                self.table.row(workload, *metric, *figure, Some(peer), None);
            }
        }
    }

    pub fn print(&self) {
        self.table.print();
    }

    pub fn write(&self, path: &str) -> Result<()> {
        self.table.write(path)
    }
}
