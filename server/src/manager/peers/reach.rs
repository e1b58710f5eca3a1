//! Which nodes this one reaches, since when not, and why. Pure: times come in.

use brickfs_common::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What one node says of its way to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sight {
    /// The other node.
    pub node: NodeId,
    /// Whether it answered the last time it was asked.
    pub is_reachable: bool,
    /// How long ago its last answer is, in milliseconds; none if there was none.
    pub age_ms: Option<u64>,
    /// Why there is none now.
    pub reason: String,
}

#[derive(Default)]
struct Seen {
    last_answer: Option<Instant>,
    fault: Option<String>,
}

/// The table of a node. A node that was not asked yet is not in it.
#[derive(Default)]
pub struct Reach {
    nodes: BTreeMap<NodeId, Seen>,
}

impl Reach {
    /// A node has answered.
    pub fn note_answer(&mut self, node: NodeId, now: Instant) {
        self.nodes.insert(node, Seen { last_answer: Some(now), fault: None });
    }

    /// A node has not. Answers whether it was thought to be reachable until now.
    pub fn note_fault(&mut self, node: NodeId, reason: String) -> bool {
        let seen = self.nodes.entry(node).or_default();
        seen.fault.replace(reason).is_none()
    }

    /// Only these nodes are of interest from now on.
    pub fn retain(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_member(*node));
    }

    /// Whether a node answered the last time it was asked.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|seen| seen.fault.is_none())
    }

    /// Whether a node was asked and did not answer. One that nobody asked yet is neither here nor there.
    pub fn is_known_away(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|seen| seen.fault.is_some())
    }

    /// All that is known.
    pub fn sights(&self, now: Instant) -> Vec<Sight> {
        let sight = |(node, seen): (&NodeId, &Seen)| Sight {
            node: *node,
            is_reachable: seen.fault.is_none(),
            age_ms: seen.last_answer.map(|at| milliseconds(now.saturating_duration_since(at))),
            reason: seen.fault.clone().unwrap_or_default(),
        };
        self.nodes.iter().map(sight).collect()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reachable_while_it_answers_and_its_silence_has_a_beginning() {
        let (a, b, start) = (NodeId([1; 16]), NodeId([2; 16]), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut reach = Reach::default();
        assert!(!reach.is_reachable(a) && reach.sights(start).is_empty());
        reach.note_answer(a, start);
        assert!(reach.note_fault(b, "refused".to_owned()));
        assert!(reach.is_reachable(a) && !reach.is_reachable(b));
        let strangers = NodeId([3; 16]);
        assert!(reach.is_known_away(b) && !reach.is_known_away(a) && !reach.is_known_away(strangers));
        assert!(reach.note_fault(a, "silent".to_owned()), "it was reachable until now");
        assert!(!reach.note_fault(a, "refused".to_owned()));
        let sights = reach.sights(at(1500));
        assert_eq!(
            (sights[0].is_reachable, sights[0].age_ms, sights[0].reason.as_str()),
            (false, Some(1500), "refused")
        );
        assert_eq!((sights[1].is_reachable, sights[1].age_ms), (false, None));
        reach.note_answer(b, at(1600));
        reach.retain(|node| node == b);
        assert_eq!(
            reach.sights(at(1700)),
            [Sight { node: b, is_reachable: true, age_ms: Some(100), reason: String::new() }]
        );
    }
}
