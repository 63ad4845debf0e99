//! Discovery in a folder: among real processes, beside files that are none of ours, and while the
//! folder is away.
#![cfg(all(feature = "file", unix))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::discovery::conformance::{self, Reach};
use dynamo_core::discovery::{Address, Change, Discovery, FileConfig, FileDiscovery, View};
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::InstanceId;
use futures::StreamExt;
use futures::stream::BoxStream;

/// A folder that is removed with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("dynamo-file-{}", InstanceId::random());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    async fn discovery(&self) -> FileDiscovery {
        FileDiscovery::start(FileConfig::new(&self.0)).await.unwrap()
    }

    /// The names in it, but for the lock of the folder.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        let names = names.map(|found| found.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != ".lock").collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn path() -> EndpointPath {
    let name = |name| Name::new(name).unwrap();
    EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") }
}

fn instance(id: u64, incarnation: u64) -> dynamo_core::Instance {
    let address = Address("tcp:127.0.0.1:1".into());
    let labels = BTreeMap::new();
    dynamo_core::Instance { id: InstanceId(id), incarnation, endpoint: path(), address, labels }
}

fn file_of(id: u64) -> String {
    format!("n.c.e.{id:016x}.json")
}

/// A watch and what it amounts to.
struct Watch(BoxStream<'static, Change>, View);

impl Watch {
    async fn of(discovery: &FileDiscovery) -> Self {
        let mut watch = Self(discovery.watch(&path()).await.unwrap(), View::default());
        assert!(matches!(watch.next().await, Change::Snapshot(_)));
        watch
    }

    async fn next(&mut self) -> Change {
        let change = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
        let change = change.unwrap().unwrap();
        self.1.apply(change.clone());
        change
    }

    async fn until(&mut self, expected: &[(u64, u64)]) {
        while self.instances() != expected {
            self.next().await;
        }
    }

    fn instances(&self) -> Vec<(u64, u64)> {
        self.1.instances().iter().map(|i| (i.id.0, i.incarnation)).collect()
    }
}

async fn wait(is_reached: impl Fn() -> bool) {
    let reach = async {
        while !is_reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reach).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_discovery_conforms() {
    let folder = Folder::new();
    let config = FileConfig::new(&folder.0).with_poll(Duration::from_millis(20));
    let here = FileDiscovery::start(config.clone()).await.unwrap();
    let there = FileDiscovery::start(config).await.unwrap();
    conformance::run(&here, Reach::Host(&there)).await;
    there.shutdown().await;
    assert_eq!(folder.names(), [""; 0], "nothing is left behind");
}

/// A process that serves, as far as its directory knows.
struct Process(Child);

impl Process {
    /// Runs this very program, which is told by its input what to register.
    fn start(folder: &Folder, id: u64, incarnation: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_of_the_other_tests", "--ignored"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let told = format!("{id} {incarnation} {}\n", folder.0.display());
        child.stdin.as_mut().unwrap().write_all(told.as_bytes()).unwrap();
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Ends the process by its own will.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "not a test: the others start it, with an input"]
async fn a_process_of_the_other_tests() {
    let mut told = String::new();
    std::io::stdin().read_line(&mut told).unwrap();
    let mut told = told.trim().splitn(3, ' ');
    let (Some(id), Some(incarnation), Some(folder)) = (told.next(), told.next(), told.next())
    else {
        return;
    };
    let discovery = FileDiscovery::start(FileConfig::new(folder)).await.unwrap();
    let instance = instance(id.parse().unwrap(), incarnation.parse().unwrap());
    let _registered = discovery.register(instance).await.unwrap();
    // Until the other end is closed, or this process is killed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    discovery.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_gone_for_every_other_and_its_file_too() {
    let folder = Folder::new();
    let mut first = Process::start(&folder, 1, 0);
    let second = Process::start(&folder, 2, 0);
    let discovery = folder.discovery().await;
    let mut watch = Watch::of(&discovery).await;
    watch.until(&[(1, 0), (2, 0)]).await;
    first.kill();
    assert_eq!(watch.next().await, Change::Remove(InstanceId(1)), "the system's word");
    wait(|| folder.names() == [file_of(2)]).await;
    // Its id is free for the process that takes its place.
    let _third = Process::start(&folder, 1, 0);
    watch.until(&[(1, 0), (2, 0)]).await;
    second.end();
    assert_eq!(watch.next().await, Change::Remove(InstanceId(2)));
    assert_eq!(folder.names(), [file_of(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_stays_and_is_taken_over_only_by_a_later_incarnation() {
    let folder = Folder::new();
    let old = Process::start(&folder, 1, 3);
    let discovery = folder.discovery().await;
    let mut watch = Watch::of(&discovery).await;
    watch.until(&[(1, 3)]).await;
    old.signal("-STOP");
    let error = discovery.register(instance(1, 3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let new = discovery.register(instance(1, 4)).await.unwrap();
    assert_eq!(watch.next().await, Change::Upsert(instance(1, 4)));
    assert_eq!(new.displaced(), None);
    // The old one finds that it has lost its place, and takes nothing with it when it ends.
    old.signal("-CONT");
    old.end();
    let mark = discovery.register(instance(2, 0)).await.unwrap();
    assert_eq!(watch.next().await, Change::Upsert(instance(2, 0)));
    let mut late = Watch::of(&discovery).await;
    late.until(&[(1, 4), (2, 0)]).await;
    drop((new, mark));
    late.until(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_lost_its_file_to_a_later_incarnation_is_told_by_which_conflict() {
    let folder = Folder::new();
    let (ours, other) = (folder.discovery().await, folder.discovery().await);
    let one = ours.register(instance(1, 0)).await.unwrap();
    let later = other.register(instance(1, 1)).await.unwrap();
    wait(|| one.displaced().is_some()).await;
    let why = one.displaced().unwrap();
    assert!(why.starts_with("conflict: instance 1 of "), "{why}");
    assert_eq!(later.displaced(), None);
    drop(one);
    let _mark = ours.register(instance(2, 0)).await.unwrap();
    let mut watch = Watch::of(&ours).await;
    watch.until(&[(1, 1), (2, 0)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_come_and_are_killed_all_the_time_leave_nothing_behind() {
    let folder = Folder::new();
    let discovery = folder.discovery().await;
    let mut watch = Watch::of(&discovery).await;
    let _stays = discovery.register(instance(9, 0)).await.unwrap();
    for _ in 0..4 {
        let mut fleet: Vec<_> = (1..=4).map(|id| Process::start(&folder, id, 0)).collect();
        watch.until(&[(1, 0), (2, 0), (3, 0), (4, 0), (9, 0)]).await;
        fleet.iter_mut().for_each(Process::kill);
        watch.until(&[(9, 0)]).await;
    }
    wait(|| folder.names() == [file_of(9)]).await;
}

#[tokio::test]
async fn what_is_no_instance_is_passed_over_and_left_alone() {
    let folder = Folder::new();
    let place = |name: &str| folder.0.join(name);
    let real = {
        // The bytes of a real one, left behind by a process that is dead.
        let discovery = folder.discovery().await;
        let _one = discovery.register(instance(1, 0)).await.unwrap();
        let real = fs::read(place(&file_of(1))).unwrap();
        discovery.shutdown().await;
        real
    };
    fs::write(place("README.md"), "not an instance").unwrap();
    fs::write(place(&file_of(2)), "{}").unwrap();
    fs::write(place(&file_of(3)), &real).unwrap();
    fs::write(place(&file_of(4)), "x".repeat(1 << 20)).unwrap();
    fs::write(place(&file_of(5)), &real[..real.len() / 2]).unwrap();
    fs::create_dir(place(&file_of(6))).unwrap();
    std::os::unix::fs::symlink("nowhere", place(&file_of(7))).unwrap();
    assert!(Command::new("mkfifo").arg(place(&file_of(8))).status().unwrap().success());
    // One that lives, and is of a version to come.
    let newer = br#"{"version": 2, "instance": "more than we know"}"#;
    fs::write(place(&file_of(9)), newer).unwrap();
    let living = fs::File::open(place(&file_of(9))).unwrap();
    living.lock().unwrap();
    // What dead processes leave behind: an instance, and one that was not yet complete.
    fs::write(place(&file_of(1)), &real).unwrap();
    fs::write(place(".00.partial"), &real[..9]).unwrap();
    let before = folder.names();

    let discovery = folder.discovery().await;
    let mut watch = Watch::of(&discovery).await;
    assert_eq!(watch.instances(), []);
    let _own = discovery.register(instance(10, 0)).await.unwrap();
    watch.until(&[(10, 0)]).await;
    let dead = [file_of(1), ".00.partial".to_owned()];
    let mut left: Vec<_> = before.into_iter().filter(|name| !dead.contains(name)).collect();
    left.push(file_of(10));
    left.sort();
    wait(|| folder.names() == left).await;
    // The name of one that is dead may be taken, that of one that lives may not.
    let _third = discovery.register(instance(3, 0)).await.unwrap();
    watch.until(&[(3, 0), (10, 0)]).await;
    let error = discovery.register(instance(9, 7)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named_by_a_typed_error() {
    let folder = Folder::new();
    let file = folder.0.join("file");
    fs::write(&file, "").unwrap();
    for (path, kind) in
        [(folder.0.join("nowhere"), ErrorKind::NotFound), (file, ErrorKind::InvalidArgument)]
    {
        let error = FileDiscovery::start(FileConfig::new(&path)).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains(path.to_str().unwrap()), "{error}");
    }
    let never = FileConfig::new(&folder.0).with_poll(Duration::ZERO);
    assert_eq!(FileDiscovery::start(never).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    // One that was there: told at once, not after a time.
    let discovery = folder.discovery().await;
    fs::remove_dir_all(&folder.0).unwrap();
    let error = discovery.register(instance(1, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains(folder.0.to_str().unwrap()), "{error}");
    let mut large = instance(1, 0);
    large.labels.insert("large".into(), "x".repeat(1 << 20));
    let error = discovery.register(large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_folder_that_is_gone_takes_nobody_with_it_and_is_filled_again_when_it_is_back() {
    let folder = Folder::new();
    let (worker, watcher) = (folder.discovery().await, folder.discovery().await);
    let one = worker.register(instance(1, 0)).await.unwrap();
    let _two = worker.register(instance(2, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    fs::remove_dir_all(&folder.0).unwrap();
    assert_eq!(watch.next().await, Change::Degraded);
    // Who leaves meanwhile is known to have left all the same.
    drop(one);
    assert_eq!(watch.next().await, Change::Remove(InstanceId(1)));
    fs::create_dir(&folder.0).unwrap();
    assert_eq!(watch.next().await, Change::Recovered);
    assert_eq!(watch.next().await, Change::Snapshot(vec![instance(2, 0)]));
    wait(|| folder.names() == [file_of(2)]).await;
    // One file that is taken away is no departure either.
    fs::remove_file(folder.0.join(file_of(2))).unwrap();
    wait(|| folder.names() == [file_of(2)]).await;
    let _mark = worker.register(instance(3, 0)).await.unwrap();
    assert_eq!(watch.next().await, Change::Upsert(instance(3, 0)));
}

#[tokio::test]
async fn an_instance_is_known_by_any_file_that_it_has_had() {
    let folder = Folder::new();
    let worker = folder.discovery().await;
    // It looks when it is asked to, and hardly ever else.
    let config = FileConfig::new(&folder.0).with_poll(Duration::from_secs(60));
    let watcher = FileDiscovery::start(config).await.unwrap();
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    fs::remove_file(folder.0.join(file_of(1))).unwrap();
    wait(|| folder.names() == [file_of(1)]).await;
    // The second file is taken away before the watcher sees it, and there is no third one yet.
    let lock = fs::File::open(folder.0.join(".lock")).unwrap();
    lock.lock().unwrap();
    fs::remove_file(folder.0.join(file_of(1))).unwrap();
    assert_eq!(Watch::of(&watcher).await.instances(), [(1, 0)]);
    lock.unlock().unwrap();
    let _mark = worker.register(instance(2, 0)).await.unwrap();
    Watch::of(&watcher).await.until(&[(1, 0), (2, 0)]).await;
    assert_eq!(watch.next().await, Change::Upsert(instance(2, 0)), "nothing was said before");
}

#[tokio::test]
async fn a_folder_locked_by_a_stopped_process_refuses_in_time_and_still_tells_who_dies() {
    let folder = Folder::new();
    let discovery = folder.discovery().await;
    let one = discovery.register(instance(1, 0)).await.unwrap();
    let mut watch = Watch::of(&discovery).await;
    let lock = fs::File::open(folder.0.join(".lock")).unwrap();
    lock.lock().unwrap();
    drop(one);
    assert_eq!(watch.next().await, Change::Remove(InstanceId(1)));
    tokio::time::pause();
    let error = discovery.register(instance(2, 0)).await.unwrap_err();
    tokio::time::resume();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains(folder.0.to_str().unwrap()), "{error}");
    lock.unlock().unwrap();
    let _two = discovery.register(instance(2, 0)).await.unwrap();
    watch.until(&[(2, 0)]).await;
    wait(|| folder.names() == [file_of(2)]).await;
}

#[tokio::test]
async fn who_may_only_read_the_folder_can_watch() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let worker = folder.discovery().await;
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let allow = |mode| fs::set_permissions(&folder.0, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o555);
    let is_bound = fs::write(folder.0.join("probe"), "").is_err();
    let reader = folder.discovery().await;
    Watch::of(&reader).await.until(&[(1, 0)]).await;
    if is_bound {
        let error = reader.register(instance(2, 0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    } else {
        // The superuser may write everywhere.
        let _two = reader.register(instance(2, 0)).await.unwrap();
    }
    allow(0o755);
}
