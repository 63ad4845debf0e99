//! The arguments of the demo.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) model: PathBuf,
    pub(crate) aggregated: bool,
    pub(crate) serve: bool,
    pub(crate) prompt: Option<String>,
    pub(crate) port: Option<u16>,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut model, mut prompt, mut port) = (None, None, None);
        let (mut aggregated, mut serve) = (false, false);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--model" => model = Some(PathBuf::from(value()?)),
                "--prompt" => prompt = Some(value()?),
                "--port" => port = Some(value()?.parse().context("--port takes 0 to 65535")?),
                "--aggregated" => aggregated = true,
                "--serve" => serve = true,
                other => bail!("unknown argument {other}; {USAGE}"),
            }
        }
        let model = model.with_context(|| format!("--model is missing; {USAGE}"))?;
        Ok(Self { model, aggregated, serve, prompt, port })
    }
}

const USAGE: &str =
    "usage: demo --model PATH [--aggregated] [--serve] [--prompt TEXT] [--port PORT]";
