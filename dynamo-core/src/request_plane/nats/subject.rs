/// The subjects of the processes that call each other.
#[derive(Debug)]
pub(super) struct Subjects {
    root: String,
    process: u64,
}

impl Subjects {
    /// Names those of `process`, below `root`.
    pub(super) fn new(root: String, process: u64) -> Self {
        Self { root, process }
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Returns where the datagrams of this process arrive.
    pub(super) fn own(&self) -> String {
        self.of(self.process)
    }

    /// Returns where the datagrams of a process arrive.
    pub(super) fn of(&self, process: u64) -> String {
        format!("{}.{REQUESTS}.{process:016x}", self.root)
    }

    /// Returns where NATS says that nobody listened to a datagram of `link`.
    pub(super) fn absence(&self, link: u64) -> String {
        format!("{}.{link:016x}", self.own())
    }

    /// Returns what matches [`absence`](Self::absence) of every link.
    pub(super) fn absences(&self) -> String {
        format!("{}.*", self.own())
    }

    /// Returns the process whose datagrams arrive at `subject`.
    pub(super) fn process(&self, subject: &str) -> Option<u64> {
        let rest = subject.strip_prefix(&self.root)?.strip_prefix('.')?;
        parse(rest.strip_prefix(REQUESTS)?.strip_prefix('.')?)
    }

    /// Returns the process and the link that an absence would be told to.
    pub(super) fn link(&self, subject: &str) -> Option<(u64, u64)> {
        let (process, link) = subject.rsplit_once('.')?;
        Some((self.process(process)?, parse(link)?))
    }
}

/// Takes exactly what is written above: whatever else a peer names is not published to.
fn parse(id: &str) -> Option<u64> {
    let is_written_so =
        id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(id, 16).ok().filter(|_| is_written_so)
}

const REQUESTS: &str = "requests";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read_as_they_are_written_and_nothing_else_is() {
        let subjects = Subjects::new("r".into(), 0x2a);
        assert_eq!(subjects.own(), "r.requests.000000000000002a");
        assert_eq!(subjects.process(&subjects.of(u64::MAX)), Some(u64::MAX));
        assert_eq!(subjects.link(&subjects.absence(7)), Some((0x2a, 7)));
        for bad in [
            "",
            "r.requests.",
            "r.requests.*",
            "r.requests.2a",
            "r.requests.000000000000002A",
            "r.requests.+00000000000002a",
            "r.requests.000000000000002a.b",
            "q.requests.000000000000002a",
            "r.events.000000000000002a",
            "$SYS.requests.000000000000002a",
        ] {
            assert_eq!((subjects.process(bad), subjects.link(bad)), (None, None), "{bad}");
        }
    }
}
