use std::io::Write as _;

use dynamo_transfer::ErrorKind;
use dynamo_transfer::device::{DeviceConfig, DeviceCopier};

/// The first GPU; where there is no driver, or in its own words no GPU, it says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_has_its_blocks_from_the_host_and_the_disk_below_it() {
    let say = |text: &str| std::io::stderr().write_all(text.as_bytes()).unwrap();
    let copier = match DeviceCopier::cuda(0, DeviceConfig::default()).await {
        Ok(copier) => copier,
        Err(error) => {
            // One that is there and cannot be used is no reason to skip.
            let absences = ["No such file", "CUDA_ERROR_NO_DEVICE"];
            let is_absent = absences.iter().any(|absence| error.message().contains(absence));
            assert!(is_absent && error.kind() == ErrorKind::BackendUnavailable, "{error}");
            let how = "`cargo xtask device-test` packs it for a machine that has one";
            return say(&format!("SKIPPED: needs a GPU ({error}); {how}\n"));
        }
    };
    say(&format!("device: {}\n", copier.describe()));
    super::basics::passes(&copier).await;
    copier.shutdown().await.unwrap();
}
