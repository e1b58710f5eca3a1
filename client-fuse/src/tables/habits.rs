//! Whether programs open the files that they look up, by directory: where they do, the next lookup brings the open file
//! along, and the open that follows asks nobody. A guess: where it is wrong a file is held open for a second.

use brickfs_common::ids::Gfid;
use std::collections::VecDeque;

/// Directories remembered: those that programs are busy in at one time.
const DIRS_MAX: usize = 16;

struct Habit {
    parent: u64,
    /// The file that was looked up last, until it is opened.
    looked_up: Option<Gfid>,
    /// The one before it was opened.
    opens_follow: bool,
}

/// See the file's head.
#[derive(Default)]
pub struct Habits(VecDeque<Habit>);

impl Habits {
    /// A name of a directory is looked up: whether it will probably be opened.
    pub fn expects_open(&mut self, parent: u64) -> bool {
        let Some(habit) = self.0.iter_mut().find(|habit| habit.parent == parent) else { return false };
        if habit.looked_up.take().is_some() {
            habit.opens_follow = false;
        }
        habit.opens_follow
    }

    /// It leads to a file.
    pub fn found(&mut self, parent: u64, gfid: Gfid) {
        if let Some(habit) = self.0.iter_mut().find(|habit| habit.parent == parent) {
            habit.looked_up = Some(gfid);
            return;
        }
        if self.0.len() == DIRS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Habit { parent, looked_up: Some(gfid), opens_follow: false });
    }

    /// A file is opened.
    pub fn opened(&mut self, gfid: &Gfid) {
        if let Some(habit) = self.0.iter_mut().find(|habit| habit.looked_up.as_ref() == Some(gfid)) {
            (habit.looked_up, habit.opens_follow) = (None, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gfid(n: u8) -> Gfid {
        Gfid([n; 16])
    }

    #[test]
    fn an_open_is_expected_where_the_last_file_was_opened() {
        let mut habits = Habits::default();
        assert!(!habits.expects_open(1));
        habits.found(1, gfid(1));
        habits.opened(&gfid(1));
        assert!(habits.expects_open(1) && !habits.expects_open(2), "each directory for itself");
        habits.found(1, gfid(2));
        assert!(!habits.expects_open(1), "the last one was only looked at");
        habits.found(1, gfid(3));
        habits.opened(&gfid(2));
        assert!(!habits.expects_open(1), "an earlier one");
    }

    #[test]
    fn a_name_that_leads_to_no_file_changes_nothing() {
        let mut habits = Habits::default();
        habits.found(1, gfid(1));
        habits.opened(&gfid(1));
        assert!(habits.expects_open(1) && habits.expects_open(1));
    }

    #[test]
    fn few_directories_are_remembered() {
        let mut habits = Habits::default();
        for parent in 0..=DIRS_MAX as u64 {
            habits.found(parent, gfid(parent as u8));
            habits.opened(&gfid(parent as u8));
        }
        assert!(habits.0.len() == DIRS_MAX && !habits.expects_open(0) && habits.expects_open(1));
    }
}
