//! Membership of replica sets: epoch, primary and in_sync as pure transitions that Raft orders (R2-R4, R7,
//! R8), and the lease inside a set that says whether its primary may serve now (R5, PROTOCOL 15).
//!
//! ```text
//!             StartCatchUp           JoinInSync
//!      out ──────────────▶ catching ────────────▶ in_sync ◀──▶ primary   PromotePrimary
//!       ▲                     up                     │  ▲
//!       ├─────────────────────┘ RemoveMember         │  │ MemberBack
//!       └────────────────────────────────────────────┤  │
//!                                                    ▼  │
//!                                                    held   where in_sync has its least size: the set
//!                                                           takes no changes until it is back, or until
//!                                                           another member has joined and it leaves
//! ```

pub mod lease;
pub mod refusal;
pub mod set;
pub mod transition;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
