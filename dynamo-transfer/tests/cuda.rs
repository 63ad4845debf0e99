//! Tests of a real GPU; `cargo xtask device-test` packs them for a machine that has one.
#![cfg(all(unix, feature = "cuda"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dynamo_transfer::device::{
    BlockCopy, DeviceConfig, DeviceCopier, IpcHandle, Method, conformance,
};
use dynamo_transfer::file::{FileOptions, FileRegion, FileStore, FileStoreConfig};
use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, Rights, TransferOptions,
};

/// Returns the first GPU; none, and says so, where there is no driver, or in its own words no GPU.
async fn gpu(config: DeviceConfig) -> Option<DeviceCopier> {
    match DeviceCopier::cuda(0, config).await {
        Ok(copier) => {
            say(&format!("device: {}\n", copier.describe()));
            Some(copier)
        }
        Err(error) => {
            // One that is there and cannot be used is no reason to skip.
            let absences = ["No such file", "CUDA_ERROR_NO_DEVICE"];
            let is_absent = absences.iter().any(|absence| error.message().contains(absence));
            assert!(is_absent && error.kind() == ErrorKind::BackendUnavailable, "{error}");
            let how = "`cargo xtask device-test` packs it for a machine that has one";
            say(&format!("SKIPPED: needs a GPU ({error}); {how}\n"));
            None
        }
    }
}

/// Says it past the test harness, which would swallow it.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gpu_keeps_the_contract() {
    let Some(copier) = gpu(DeviceConfig::default()).await else { return };
    conformance::run(&copier, 11).await;
    copier.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_of_the_gpu_keeps_the_contract() {
    for (seed, method) in [(12, Method::Each), (13, Method::Batch), (14, Method::Kernel)] {
        let Some(copier) = gpu(DeviceConfig::default().with_method(method)).await else { return };
        conformance::run(&copier, seed).await;
        copier.shutdown().await.unwrap();
    }
}

/// Another process opens what this one exports, checks it and writes an answer.
#[tokio::test(flavor = "multi_thread")]
async fn memory_of_the_gpu_is_shared_between_processes() {
    let Some(copier) = gpu(DeviceConfig::default()).await else { return };
    let buffer = copier.allocate(SHARED).unwrap();
    buffer.copy_from(&copier, 0, &pattern(3)).await.unwrap();
    let handle = buffer.export().unwrap();
    assert!(copier.open(&handle).is_err(), "memory of this very process");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "the_other_process", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&handle.to_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(buffer.copy_to(&copier, 0, SHARED).await.unwrap() == pattern(4));
}

/// The GPU's memory at either end, and at the other one what it reaches and what it does not.
#[tokio::test(flavor = "multi_thread")]
async fn memory_of_the_gpu_is_a_region_of_an_agent() {
    let Some(copier) = gpu(DeviceConfig::default()).await else { return };
    let (agent, store) =
        (Agent::start(AgentConfig::default()), FileStore::start(FileStoreConfig::default()));
    let (agent, store) = (agent.await.unwrap(), store.unwrap());
    let path = std::env::temp_dir().join(format!("dynamo-cuda-file-{}", std::process::id()));
    let file = FileRegion::create(&path, SHARED as u64, FileOptions::default()).unwrap();
    let rights = Rights::PeersWrite;
    let halves =
        || vec![copier.allocate(SHARED / 2).unwrap(), copier.allocate(SHARED / 2).unwrap()];
    let first = agent.register_device(&copier, halves(), rights).unwrap();
    let second = agent.register_device(&copier, halves(), rights).unwrap();
    let file = agent.register_file(&store, file, rights).unwrap();
    let pinned = agent.register_peer_writable(vec![copier.allocate_pinned(SHARED).unwrap()]);
    let (pinned, pageable) = (pinned.unwrap(), agent.register(vec![pattern(5)]).unwrap());
    let last = agent.register_peer_writable(vec![HostBuffer::new(SHARED)]).unwrap();
    let handles = [first.grant(), second.grant(), pinned.grant(), file.grant(), last.grant()];
    let own = agent.load_metadata(&agent.metadata(handles).unwrap()).unwrap();
    // Blocks of odd sizes, each to its own place.
    let (size, block) = (SHARED as u64, BLOCK as u64 + 1);
    let blocks = (0..size).step_by(BLOCK + 1).map(|at| (at, block.min(size - at)));
    let blocks: Vec<_> = blocks.collect();
    let mut ways = Vec::new();
    let from = [
        pageable.descriptor(blocks.clone()),
        first.descriptor(blocks.clone()),
        second.descriptor(blocks.clone()),
        pinned.descriptor(blocks.clone()),
        file.descriptor(blocks.clone()),
    ];
    // From pageable memory over the GPU's, its other, pinned memory and a file to pageable memory.
    for (from, to) in from.into_iter().zip(own.regions()) {
        let to = to.descriptor(blocks.iter().copied()).unwrap();
        let report = agent.write(from.unwrap(), to, TransferOptions::default()).await.unwrap();
        ways.push(report.backend);
    }
    let (by_device, by_file) = (BackendKind::Device, BackendKind::File);
    assert_eq!(ways, [by_device, by_device, by_device, by_file, by_file]);
    assert!(last.close().await[0][..] == pattern(5));
    // And over a bounce buffer from the file to the GPU.
    let to = own.regions()[0].descriptor([(SHARED as u64 / 2 - 7, 99)]).unwrap();
    let from = file.descriptor([(1, 99)]).unwrap();
    agent.write(from, to, TransferOptions::default()).await.unwrap();
    let buffers = first.close().await;
    let head = buffers[0].copy_to(&copier, SHARED / 2 - 7, 7).await.unwrap();
    let tail = buffers[1].copy_to(&copier, 0, 92).await.unwrap();
    assert_eq!([head, tail].concat(), pattern(5)[1..100]);
    drop((second, pinned, file, buffers));
    agent.shutdown().await;
    store.shutdown(Duration::from_secs(10)).await.unwrap();
    copier.shutdown().await.unwrap();
    std::fs::remove_file(path).unwrap();
}

/// The tests of this file against a driver that has no GPU but knows what one would not forgive: calls in
/// the context, none from the thread that tells, no byte beside a block, nothing held at the end.
#[test]
fn the_driver_is_called_as_it_wants_to_be() {
    let folder = std::env::temp_dir().join(format!("dynamo-cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda/driver.cpp");
    let compile = |library: &str, define: &str| {
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", "-w", define, source]);
        compiler.arg("-o").arg(folder.join(library)).status().is_ok_and(|status| status.success())
    };
    let run = |tests: &[&str], expected: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--test-threads=1"])
            .args(tests)
            .env("LD_LIBRARY_PATH", &folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tests:?}: {text}");
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("SKIPPED") && !text.contains("VIOLATION"), "{text}");
    };
    if compile("libcuda.so.1", "-DCUDA_13") {
        run(
            &["the_gpu_keeps"],
            "device: no GPU; driver for CUDA 12.8; copies by batch; no kernel: no NV",
        );
        assert!(compile("libcuda.so.1", "-DCUDA_12") && compile("libnvrtc.so", "-DNVRTC"));
        let all = ["--skip", "the_driver_is_called", "--skip", "a_gpu_that_is_lost"];
        run(&all, "device: no GPU; driver for CUDA 12.8; copies by batch and by kernel");
        run(&["--ignored", "a_gpu_that_is_lost"], "device: no GPU");
    } else {
        say("SKIPPED: needs a C++ compiler; `apt-get install g++`\n");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_driver_that_is_there_and_cannot_be_used_fails_the_tests() {
    let folder = std::env::temp_dir().join(format!("dynamo-no-cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("libcuda.so.1"), "no library").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_gpu_keeps_the_contract"])
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("libcuda.so.1: "), "{text}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "only a driver without a GPU can be lost at will: another test starts it with one"]
async fn a_gpu_that_is_lost_fails_whoever_waits() {
    let config = DeviceConfig::default().with_copy_deadline(Duration::from_millis(500));
    let Some(copier) = gpu(config).await else { return };
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let upload = |len| copier.upload(&source, &target, &[BlockCopy { source: 0, target: 0, len }]);
    upload(4096).await.unwrap();
    let (first, second, third) = (upload(4096), upload(666), upload(4096));
    // The first may have passed.
    let _ = first.await;
    let watched = Arc::downgrade(&source);
    for lost in [second.await, third.await, upload(4096).await] {
        let error = lost.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
        assert!(error.to_string().contains("it is lost"), "{error}");
    }
    assert_eq!(copier.allocate(1).unwrap_err().kind(), ErrorKind::BackendUnavailable);
    drop((source, target));
    assert!(watched.upgrade().is_some(), "what was in flight is never given back");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is started by another test, with a handle on its standard input"]
async fn the_other_process() {
    let mut handle = Vec::new();
    std::io::stdin().read_to_end(&mut handle).unwrap();
    // Run by hand it has nothing to open.
    if handle.is_empty() {
        return;
    }
    let handle = IpcHandle::from_bytes(&handle).unwrap();
    let copier = DeviceCopier::cuda(0, DeviceConfig::default()).await.unwrap();
    let mut lying = handle.to_bytes();
    // A terabyte.
    lying[22] = 1;
    let refused = copier.open(&IpcHandle::from_bytes(&lying).unwrap()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
    let opened = copier.open(&handle).unwrap();
    assert!(opened.copy_to(&copier, 0, SHARED).await.unwrap() == pattern(3));
    opened.copy_from(&copier, 0, &pattern(4)).await.unwrap();
    drop(opened);
    copier.shutdown().await.unwrap();
}

/// Many tasks at once on all directions: what one stream tells another does not matter to.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_do_not_disturb_each_other() {
    let Some(copier) = gpu(DeviceConfig::default()).await else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..16u8 {
        let copier = copier.clone();
        tasks.spawn(async move {
            let device = copier.allocate(SHARED).unwrap();
            let other = copier.allocate(SHARED).unwrap();
            let blocks: Vec<_> = (0..SHARED / BLOCK)
                .map(|at| (at * BLOCK, (SHARED / BLOCK - 1 - at) * BLOCK))
                .map(|(source, target)| BlockCopy { source, target, len: BLOCK })
                .collect();
            for round in 0..8 {
                let mut source = copier.allocate_pinned(SHARED).unwrap();
                source.copy_from_slice(&pattern(seed.wrapping_mul(8) + round));
                let source = Arc::new(source);
                copier.upload(&source, &device, &blocks).await.unwrap();
                copier.copy(&device, &other, &blocks).await.unwrap();
                let target = copier.allocate_pinned(SHARED).unwrap();
                let all = [BlockCopy { source: 0, target: 0, len: SHARED }];
                let target = copier.download(&other, target, &all).await.unwrap();
                assert!(target[..] == source[..], "task {seed}, round {round}");
            }
        });
    }
    tasks.join_all().await;
    copier.shutdown().await.unwrap();
}

const SHARED: usize = 4 << 20;
const BLOCK: usize = 16 << 10;

fn pattern(seed: u8) -> Vec<u8> {
    let period: Vec<u8> = (0..=250).map(|at: u8| at.wrapping_mul(seed | 1)).collect();
    let mut bytes = period.repeat(SHARED / period.len() + 1);
    bytes.truncate(SHARED);
    bytes
}
