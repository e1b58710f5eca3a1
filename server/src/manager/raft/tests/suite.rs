//! openraft's own tests of a log store and a state machine, each case on a database of its own.

use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::log_store::{LogStore, any};
use crate::manager::raft::state_machine::StateMachine;
use crate::manager::raft::types::{StorageError, StorageIOError, Types};
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let build = || {
            let dir = tempfile::tempdir()?;
            let db = ClusterDb::open(&dir.path().join("cluster.sled"))?;
            let log = LogStore::open(&db)?;
            let machine = StateMachine::open(&db, dir.path().join("cluster.json"))?;
            anyhow::Ok((dir, log, machine))
        };
        build().map_err(|error| StorageIOError::write(any(error)).into())
    }
}

#[test]
fn the_stores_pass_openrafts_own_tests() {
    Suite::test_all(Builder).unwrap();
}
