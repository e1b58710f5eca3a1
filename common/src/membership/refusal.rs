//! Why a change of a set is refused: one line for people.

use crate::ids::BrickId;

/// Why a transition is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetRefusal {
    /// Decided on another epoch.
    #[error("decided in epoch {decided}, the set is in epoch {current}: look again")]
    StaleEpoch {
        /// The epoch of the decision.
        decided: u64,
        /// The epoch in force.
        current: u64,
    },
    /// Not a member.
    #[error("brick {0} is not a member")]
    NoSuchMember(BrickId),
    /// A member that is out or catching up, where one in sync is needed.
    #[error("brick {0} is not in sync")]
    NotInSync(BrickId),
    /// A member in sync, where another one is needed.
    #[error("brick {0} is in sync already")]
    InSyncAlready(BrickId),
    /// A join without a catch-up.
    #[error("brick {0} is not catching up")]
    NotCatchingUp(BrickId),
    /// It leads already.
    #[error("brick {0} is the primary already")]
    PrimaryAlready(BrickId),
    /// It cannot lead.
    #[error("brick {0} cannot lead: it is not in sync, or is known to be lost or broken")]
    CannotLead(BrickId),
    /// A disk that was replaced since.
    #[error("brick {brick} has incarnation {current} by now, not {given}")]
    OtherIncarnation {
        /// The brick.
        brick: BrickId,
        /// The incarnation of the command.
        given: u64,
        /// The one in force.
        current: u64,
    },
    /// It is not held.
    #[error("brick {0} is not marked as lost")]
    NotHeld(BrickId),
    /// Its disk failed.
    #[error("the disk of brick {0} failed: replace it, or let another member catch up first")]
    HasFailed(BrickId),
    /// The set has no more members in sync than it must.
    #[error(
        "brick {0} cannot be dropped: too few others are in sync; wait for one, or see 'brickctl volume reset-set'"
    )]
    Needed(BrickId),
    /// A reset that nobody took responsibility for.
    #[error("a reset gives up changes that were acknowledged: say --accept-loss")]
    LossNotAccepted,
    /// A reset of a set that has members in sync.
    #[error("brick {0} is in sync and not known to be lost: the set needs no reset")]
    NotStuck(BrickId),
}
