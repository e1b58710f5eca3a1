//! A client's call at the node that it reaches.

use super::cluster::Call;
use crate::brick::set::Asker;
use crate::brick::store::model::ModelStore;
use crate::brick::volume::dispatch::Admission;
use crate::brick::volume::{Ask, Ran, Stop, Volume};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop};

/// Admission as the session has it, then the operation.
pub async fn serve_client(volume: &Volume<ModelStore>, header: &CallHeader, call: Call) -> Ran {
    volume.lock().clients.client(call.client).session = 1; // it has greeted
    match volume.admit(call.client, 1, header, &call.fop) {
        Admission::Run => {}
        Admission::Failed(errno) => return Err(errno.into()),
        Admission::Again(outcome) => return Ok(volume.reply_again(header.request, &outcome).await),
        Admission::SessionOver | Admission::Join(_) => return Err(Errno::EIO.into()),
    }
    let asker = Asker { client: call.client, request: call.request };
    let ask = Ask { asker, set: call.set, uid: 0, gid: 0 };
    match call.fop {
        Fop::ReadDir { directory, after, limit, plus } => {
            volume.read_dir(call.request, call.set, directory, after, (limit, plus)).await.map_err(Stop::from)
        }
        fop => volume.run_names(ask, fop).await,
    }
}
