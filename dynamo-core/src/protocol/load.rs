use super::worker::WorkerId;

/// What a worker says about how busy it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadReport {
    /// Who reports.
    pub worker: WorkerId,
    /// Requests being computed.
    pub requests_running: u32,
    /// Requests accepted but not started.
    pub requests_waiting: u32,
    /// Prompt tokens still to be prefilled, over all running and waiting requests; `None` if the
    /// engine does not tell, and routers go on with what they have booked.
    pub prefill_tokens: Option<u64>,
    /// KV blocks held by running requests.
    pub blocks_active: u64,
    /// KV blocks in all.
    pub blocks_total: u64,
}

impl LoadReport {
    /// What these reports are called among the events of their workers' component.
    pub const EVENT: &'static str = "load_reports";

    /// Returns the report of a worker that has nothing to do, and does not say how many blocks it
    /// has.
    pub const fn idle(worker: WorkerId) -> Self {
        Self {
            worker,
            requests_running: 0,
            requests_waiting: 0,
            prefill_tokens: Some(0),
            blocks_active: 0,
            blocks_total: 0,
        }
    }
}
