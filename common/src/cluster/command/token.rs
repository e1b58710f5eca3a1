//! Join tokens: made by an operator, used once, gone at their end.

use crate::cluster::command::Refusal;
use crate::cluster::state::{ClusterState, TOKENS_MAX};
use crate::cluster::token::{TokenHash, TokenState};
use crate::ids::NodeId;
use serde::{Deserialize, Serialize};

/// Longest life of a token: a week.
pub const TOKEN_LIFE_MAX_MS: u64 = 7 * 24 * 3600 * 1000;
/// Longest name of who made a token.
const MAKER_MAX_BYTES: usize = 256;

/// A new join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddToken {
    /// Hash of its secret.
    pub hash: TokenHash,
    /// When it is over, in milliseconds since 1970.
    pub ends_ms: u64,
    /// Who asked for it.
    pub made_by: String,
    /// The time of the sender, in milliseconds since 1970.
    pub now_ms: u64,
}

pub(super) fn add(state: &mut ClusterState, add: &AddToken) -> Result<(), Refusal> {
    if add.ends_ms <= add.now_ms || add.ends_ms - add.now_ms > TOKEN_LIFE_MAX_MS {
        return Err(Refusal::BadEnd("join token"));
    }
    if add.made_by.len() > MAKER_MAX_BYTES || add.made_by.chars().any(char::is_control) {
        return Err(Refusal::BadMaker);
    }
    drop_ended(state, add.now_ms);
    if state.tokens.contains_key(&add.hash) {
        return Err(Refusal::TokenExists);
    }
    if state.tokens.len() >= TOKENS_MAX {
        return Err(Refusal::TooManyTokens);
    }
    let token = TokenState { ends_ms: add.ends_ms, made_by: add.made_by.clone(), used_by: None };
    state.tokens.insert(add.hash, token);
    Ok(())
}

/// Whether this node has joined with this token before; a refusal where it may not join with it.
pub(super) fn check(state: &ClusterState, hash: &TokenHash, node: NodeId, now_ms: u64) -> Result<bool, Refusal> {
    let token = state.tokens.get(hash).ok_or(Refusal::UnknownToken)?;
    match token.used_by {
        _ if token.ends_ms <= now_ms => Err(Refusal::TokenEnded),
        None => Ok(false),
        // A node that was removed since needs a new token.
        Some(user) if user == node && state.nodes.contains_key(&node) => Ok(true),
        Some(_) => Err(Refusal::TokenUsed),
    }
}

pub(super) fn drop_ended(state: &mut ClusterState, now_ms: u64) {
    state.tokens.retain(|_, token| token.ends_ms > now_ms);
}
