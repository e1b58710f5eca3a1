//! What a store does at start, before the brick talks to anyone: the last effect of the node is applied
//! again (PROTOCOL 20). Effects are applied one after the other, each right after its record was
//! written, so no earlier one can be half done.

use crate::brick::effect::Step;
use crate::brick::store::Store;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;

impl Store {
    /// Applies a step of the last effect again. `Ok(false)`: the step cannot be redone and did not
    /// happen, the effect's result must not be kept (an append whose data are with the client).
    pub fn redo(&mut self, step: &Step) -> Result<bool, Errno> {
        match step {
            Step::Write { gfid, offset, length, append } => {
                if !append {
                    return Ok(false);
                }
                let file = match self.file(&Gfid(*gfid)) {
                    Ok(file) => file,
                    Err(Errno::ESTALE) => return Ok(false),
                    Err(error) => return Err(error),
                };
                let size = rustix::fs::fstat(&*file).map_err(super::errno)?.st_size as u64;
                if size >= offset + u64::from(*length) {
                    return Ok(true);
                }
                if size > *offset {
                    rustix::fs::ftruncate(&*file, *offset).map_err(super::errno)?;
                }
                Ok(false)
            }
            other => self.apply(other).map(|()| true),
        }
    }
}
