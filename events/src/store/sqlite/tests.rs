//! What only a store on a disk can promise.

use std::sync::Mutex;

use super::*;
use crate::store::conformance::{self, event, stream};

fn open(folder: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(folder.path().join("events.db")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms() {
    let folders = Mutex::new(Vec::new());
    conformance::run(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        folders.lock().unwrap().push(folder);
        Arc::new(store) as Arc<dyn EventStore>
    })
    .await;
}
