//! The tier of an object store: what it promises, over stores that fail, and over S3.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod basics;
mod contract;
mod faulty;
mod oracle;
mod plan;
mod presence;
mod races;
mod s3;
mod support;
