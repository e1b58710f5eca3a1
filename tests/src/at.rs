//! Errors that say which path and which line of a test they belong to.

use std::panic::Location;
use std::path::Path;

/// Adds a path, and the line of the test, to an error.
pub trait At<T> {
    /// The error says `path` and the caller's line.
    #[track_caller]
    fn at(self, path: impl AsRef<Path>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> At<T> for Result<T, E> {
    #[track_caller]
    fn at(self, path: impl AsRef<Path>) -> anyhow::Result<T> {
        let caller = Location::caller();
        self.map_err(|error| error.into().context(format!("{caller}: {}", path.as_ref().display())))
    }
}
