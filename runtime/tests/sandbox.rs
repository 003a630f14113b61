//! A sandbox is a machine that starts, runs each command once, outlives the server and leaves nothing behind.

mod host;

use std::time::Duration;

use host::{Host, deadline, sh, text};
use orchestra_runtime::sandbox::{Exit, Sandboxes};

#[tokio::test]
async fn a_sandbox_starts_and_prints() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let outcome = sandbox.exec(sh("one", "echo hello; echo oops >&2; pwd; exit 7"), None).await.unwrap();
    assert_eq!(outcome.exit, Exit::Code(7));
    assert_eq!(text(&outcome), "hello\noops\n/workspace\n");
    assert_eq!(outcome.total_bytes, 11 + 11);
    host.sandboxes.destroy(id).await.unwrap();
    let _ = deadline(Duration::from_secs(1));
}
