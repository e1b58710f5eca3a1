//! What names were seen to lead to since a name was last changed on this brick: an operation that has looked at a name
//! to decide need not look again to apply what it decided. Whatever changes a name clears it all.

use brickfs_common::ids::Gfid;

/// Names remembered: an operation has two, a transaction between sets a few more.
const NAMES_MAX: usize = 8;

/// A name in a directory, and the object that it led to.
struct Name {
    parent: Gfid,
    name: Vec<u8>,
    found: Option<Gfid>,
}

/// See the file's head.
#[derive(Default)]
pub struct Seen(Vec<Name>);

impl Seen {
    /// A name was looked at on the disk.
    pub fn put(&mut self, parent: &Gfid, name: &[u8], found: Option<Gfid>) {
        if let Some(known) = self.0.iter_mut().find(|known| known.parent == *parent && known.name == name) {
            known.found = found;
            return;
        }
        if self.0.len() == NAMES_MAX {
            self.0.remove(0);
        }
        self.0.push(Name { parent: *parent, name: name.to_vec(), found });
    }

    /// What a name led to when it was looked at; `None` if it was not.
    pub fn get(&self, parent: &Gfid, name: &[u8]) -> Option<Option<Gfid>> {
        self.0.iter().find(|known| known.parent == *parent && known.name == name).map(|known| known.found)
    }

    /// A name is about to be changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_names_are_known_until_one_changes() {
        let (mut seen, dir) = (Seen::default(), Gfid([1; 16]));
        for n in 0..=NAMES_MAX as u8 {
            seen.put(&dir, &[n], Some(Gfid([n; 16])));
        }
        assert_eq!(seen.get(&dir, &[0]), None, "bounded");
        assert_eq!(seen.get(&dir, &[1]), Some(Some(Gfid([1; 16]))));
        assert_eq!(seen.get(&Gfid([2; 16]), &[1]), None, "another directory");
        seen.put(&dir, &[1], None);
        assert_eq!(seen.get(&dir, &[1]), Some(None));
        seen.clear();
        assert_eq!(seen.get(&dir, &[1]), None);
    }
}
