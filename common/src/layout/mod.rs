//! Where names live: slots of names, and the layout that maps slots to sets.

pub mod generation;
pub mod slots;
