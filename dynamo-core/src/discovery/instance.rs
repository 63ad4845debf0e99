use std::collections::BTreeMap;
use std::fmt;

use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// One live server of an endpoint, as discovery knows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Instance {
    /// The instance's id, shared by all endpoints of the same worker.
    pub id: InstanceId,
    /// Grows when the same id registers again; a lower incarnation is stale.
    pub incarnation: u64,
    /// The endpoint served.
    pub endpoint: EndpointPath,
    /// Where the request plane reaches it.
    pub address: Address,
    /// What the instance says of itself (model, zone, role); opaque to this crate.
    pub labels: BTreeMap<String, String>,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {} of {}", self.id, self.endpoint)
    }
}

/// Where a request plane reaches an instance; only the plane that made it reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Address(pub String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
