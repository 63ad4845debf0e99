//! The states of a block, as types.
//!
//! ```text
//!           allocate             complete                register
//!   free ────────────► Mutable ───────────► Complete ───────────► Registered ◄──┐
//!    ▲ ▲                 │                     │        (active)      │         │ match_prefix
//!    │ └──────drop───────┴────────drop─────────┘            last drop │         │
//!    │                                                                ▼         │
//!    └───────────────────────────── evict ────────────────────────  cached ─────┘
//! ```
//!
//! The memory itself moves from state to state, so a state that is left cannot be used any more.

mod registered;
mod writable;

pub use registered::{RegisteredBlock, WeakBlock};
pub use writable::{CompleteBlock, MutableBlock, PartialBlock};
