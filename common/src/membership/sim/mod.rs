//! Seeded simulation of one set: members with clocks of their own, a manager that commits membership, and a
//! network and processes that fail. After each step it is checked that at most one member serves (R5), that
//! its members in sync are bound by their grants, that epochs only grow (R2), and that no acknowledged write
//! is missing at who serves (R1, R3, R4); when the storm is over, that the set acknowledges writes again.
//!
//! `SIM_SEEDS=N` runs the first N seeds, `SIM_SEED=S` replays one with what happened.

mod check;
mod clock;
mod manager;
mod member;
mod message;
mod receive;
mod rng;
mod weather;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Seeds of a normal run.
const SEEDS: u64 = 500;
/// Length of a lease.
const LEASE: u64 = 2000;
/// How long one is silent before it counts as lost; less than a lease, so that promises matter.
const SILENT_MS: u64 = 1200;
/// How often members and the manager look around.
const TICK_MS: u64 = 400;
/// How long the faults last, and how long after them a write has to be acknowledged.
const STORM_MS: u64 = 22_000;
const CALM_MS: u64 = 30_000;

/// A mistake that is made on purpose, to see that the checks find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sabotage {
    None,
    /// R2: members take effects and grant for epochs that are over.
    TakesLowerEpochs,
    /// R3: a primary acknowledges without a silent member before it was removed.
    AcksWithoutSilentMember,
    /// R4: the manager promotes whoever is there.
    PromotesAnybody,
    /// R5: a primary serves whatever was granted.
    ServesWithoutGrants,
    /// R5: a new primary does not wait until its own grant to the old one is over.
    LeadsBeforeOwnGrantIsOver,
    /// PROTOCOL 18: a member that has everything is not waited for until it is in sync.
    AcksWithoutJoiner,
    /// PROTOCOL 15 with 18: the grant of a member that is about to join is not needed.
    ServesWithoutJoinersGrant,
    /// PROTOCOL 18: a process that starts thinks that nobody is about to join.
    ForgetsJoinerAtStart,
    /// PROTOCOL 15: clocks differ by more than the margin of a grant.
    HasWildClocks,
}

struct Ended {
    acked: u64,
    epochs: u64,
    /// How long after the storm a write was acknowledged.
    recovery_ms: u64,
    /// No member of the last in_sync lives: the set waits, as it must (R4).
    waits: bool,
}

/// Runs one history; an error says what was broken, and how to see it again.
fn run(seed: u64, sabotage: Sabotage, traces: bool) -> Result<Ended, String> {
    let replay = |what: String| {
        format!(
            "seed {seed}: {what}\nreplay: SIM_SEED={seed} cargo test -p brickfs-common --lib membership::sim -- --nocapture"
        )
    };
    catch_unwind(AssertUnwindSafe(|| history(seed, sabotage, traces)))
        .unwrap_or_else(|_| Err("an assertion failed".to_owned()))
        .map_err(replay)
}

fn history(seed: u64, sabotage: Sabotage, traces: bool) -> Result<Ended, String> {
    let mut world = World::new(seed, sabotage, traces);
    step_until(&mut world, |world| world.now_ms >= STORM_MS)?;
    world.calm();
    // What was decided in the storm may be acknowledged at once: a few writes more show that it goes on.
    let enough = world.acked_count + 5;
    let calm_ms = world.now_ms;
    let deadline_ms = calm_ms + CALM_MS;
    step_until(&mut world, |world| world.acked_count >= enough || world.now_ms > deadline_ms)?;
    // The last that was heard of who lives may be older than of who died: then the living one was removed.
    let waits = !world.in_sync_lives();
    if world.acked_count < enough && !waits {
        return Err(format!("nothing is acknowledged {CALM_MS} ms after the faults ended: {:?}", world.manager.set));
    }
    let recovery_ms = if waits { 0 } else { world.now_ms - calm_ms };
    Ok(Ended { acked: world.acked_count, epochs: world.epochs, recovery_ms, waits })
}

fn step_until(world: &mut World, is_done: impl Fn(&World) -> bool) -> Result<(), String> {
    while !is_done(world) {
        world.step();
        if let Some(violation) = world.violation.take() {
            return Err(format!("at {} ms: {violation}", world.now_ms));
        }
    }
    Ok(())
}

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test] // R1-R5
fn no_history_breaks_a_rule() {
    if let Some(seed) = env_number("SIM_SEED") {
        run(seed, Sabotage::None, true).map(drop).unwrap_or_else(|broken| panic!("{broken}"));
        return;
    }
    let seeds = env_number("SIM_SEEDS").unwrap_or(SEEDS);
    let (mut acked, mut epochs, mut recovery_ms, mut waiting) = (0, 0, 0, 0);
    for seed in 0..seeds {
        let ended = run(seed, Sabotage::None, false).unwrap_or_else(|broken| panic!("{broken}"));
        acked += ended.acked;
        epochs += ended.epochs;
        waiting += u64::from(ended.waits);
        recovery_ms = recovery_ms.max(ended.recovery_ms);
    }
    println!(
        "{seeds} seeds: {acked} writes acknowledged, {epochs} epochs, longest recovery {recovery_ms} ms, {waiting} wait (R4)"
    );
    assert!(waiting <= 1 + seeds / 200, "too many sets wait for the dead to show anything");
    assert!(acked > seeds * 20 && epochs > seeds * 5, "the weather was too bad or too good to show anything");
}

#[test]
fn every_broken_rule_is_found() {
    let mistakes = [
        Sabotage::TakesLowerEpochs,
        Sabotage::AcksWithoutSilentMember,
        Sabotage::PromotesAnybody,
        Sabotage::ServesWithoutGrants,
        Sabotage::LeadsBeforeOwnGrantIsOver,
        Sabotage::AcksWithoutJoiner,
        Sabotage::ServesWithoutJoinersGrant,
        Sabotage::ForgetsJoinerAtStart,
        Sabotage::HasWildClocks,
    ];
    for mistake in mistakes {
        let found = (0..SEEDS).find_map(|seed| Some((seed, run(seed, mistake, false).err()?)));
        let (seed, broken) = found.unwrap_or_else(|| panic!("{mistake:?} was not found in {SEEDS} seeds"));
        let what = broken.lines().next().unwrap_or_default();
        println!("{mistake:?}: found by seed {seed}: {what}");
        assert!(!what.contains("nothing is acknowledged") && !what.contains("assertion"), "{mistake:?}: {what}");
    }
}
