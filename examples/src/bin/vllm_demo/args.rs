//! The arguments of the demo with vLLM.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Args {
    /// The interpreter that has vLLM.
    pub(crate) python: PathBuf,
    /// The model as a Hugging Face folder.
    pub(crate) model: PathBuf,
    pub(crate) job: Job,
    /// Where the front end listens; any free port if `None`.
    pub(crate) port: Option<u16>,
}

/// What is done once the fleet is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// The conversations by both policies, then one server is killed.
    Show,
    /// Clients of others are run against the front end.
    Clients,
    /// The front end is left to whoever asks it.
    Serve,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut python, mut model, mut port, mut job) = (None, None, None, Job::Show);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            let chosen = |other| match job {
                Job::Show => Ok(other),
                _ => bail!("--clients and --serve exclude each other"),
            };
            match arg.as_str() {
                "--python" => python = Some(PathBuf::from(value()?)),
                "--model-dir" => model = Some(PathBuf::from(value()?)),
                "--port" => port = Some(value()?.parse().context("--port takes 0 to 65535")?),
                "--clients" => job = chosen(Job::Clients)?,
                "--serve" => job = chosen(Job::Serve)?,
                other => bail!("unknown argument {other}; {USAGE}"),
            }
        }
        ensure!(port.is_none() || job != Job::Show, "--port needs --clients or --serve");
        let python = python.with_context(|| format!("--python is missing; {USAGE}"))?;
        let model = model.with_context(|| format!("--model-dir is missing; {USAGE}"))?;
        Ok(Self { python, model, job, port })
    }
}

const USAGE: &str =
    "usage: vllm_demo --python PATH --model-dir DIR [(--clients | --serve) [--port PORT]]";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args> {
        let line = format!("--python python --model-dir model {line}");
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_port_is_for_who_asks_from_outside() {
        assert_eq!(parsed("--port 8000 --serve").unwrap().port, Some(8000));
        assert_eq!(parsed("--clients --port 8000").unwrap().port, Some(8000));
        let refused = parsed("--port 8000").unwrap_err().to_string();
        assert!(refused.starts_with("--port"), "{refused}");
    }
}
