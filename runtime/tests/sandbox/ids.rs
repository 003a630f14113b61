//! Each sandbox runs with host ids of its own, its files know nothing of that, and no range is lost or given twice.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orchestra_events::SandboxId;
use orchestra_runtime::sandbox::{HostIds, Sandbox, Sandboxes, WORKSPACE_UID};

use crate::host::{Host, limits, open_with, say, spec, until};

const CLAIMS: &str = "/run/orchestra/ids";
const DISK: u64 = 256 << 20;

/// The host's ids of a sandbox's first process: user and group, as the kernel tells everybody.
fn ids_of(host: &Host, id: SandboxId) -> (u32, u32) {
    let pid = fs::read_to_string(host.dir_of(id).join("pid")).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let all: HashSet<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(all.len(), 1, "real, effective, saved and file system id are one: {line}");
        all.into_iter().next().unwrap()
    };
    (field("Uid:"), field("Gid:"))
}

/// The names of this sandbox's claims.
fn claims(claims: &Path, host: &Host, id: SandboxId) -> Vec<String> {
    let owner = fs::canonicalize(host.dir.path()).unwrap().join("sandboxes").join(id.to_string());
    let entries = fs::read_dir(claims).unwrap().flatten();
    entries
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == owner))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[tokio::test]
async fn two_sandboxes_share_no_user_of_the_host() {
    let host = Host::new();
    let (first, second) = (host.id(), host.id());
    let (one, two) = (host.start(first).await, host.start(second).await);
    let (a, b) = (ids_of(&host, first), ids_of(&host, second));
    assert_ne!(a, b);
    for (ids, id, sandbox) in [(a, first, &one), (b, second, &two)] {
        assert_eq!(ids.0, ids.1);
        assert_eq!(ids.0 % 65_536, 1_000, "user 1000 of a range on the grid: {ids:?}");
        assert!(ids.0 > 165_536, "none of the ids that files have: {ids:?}");
        assert_eq!(claims(Path::new(CLAIMS), &host, id), [(ids.0 / 65_536).to_string()]);
        let map = say(sandbox, "id -u; cat /proc/self/uid_map /proc/self/gid_map").await;
        let line = format!("0 {} 65536", ids.0 - 1_000);
        let words = map.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, format!("1000 {line} {line}"));
    }
}

#[tokio::test]
async fn files_are_owned_right_on_both_sides() {
    let host = Host::new();
    let lower = host.dir.path().join("lowers/one");
    fs::create_dir_all(lower.join("src")).unwrap();
    fs::write(lower.join("src/lib.rs"), "shared\n").unwrap();
    for path in ["", "src", "src/lib.rs"] {
        chown(lower.join(path), Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    }
    let id = host.id();
    let volume = host.sandboxes.create_volume(id, DISK).await.unwrap();
    volume.lay("repo", &lower).await.unwrap();
    fs::write(volume.workspace().join("from-the-host"), "").unwrap();
    chown(volume.workspace().join("from-the-host"), Some(WORKSPACE_UID), Some(WORKSPACE_UID)).unwrap();
    let sandbox = host.start(id).await;
    assert_ne!(ids_of(&host, id).0, WORKSPACE_UID);
    let said = say(
        &sandbox,
        "cd /workspace; echo x > new; echo y >> repo/src/lib.rs; mv repo/src repo/moved; echo z > /var/tmp/over; echo h > ~/home; \
         stat -c '%n %u:%g' . from-the-host new repo/moved repo/moved/lib.rs ~ ~/home /var/tmp/over /var/tmp /usr",
    )
    .await;
    let (ours, roots): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.ends_with(" 1000:1000"));
    assert_eq!(ours.len(), 8, "{said}");
    assert_eq!(roots, ["/var/tmp 65534:65534", "/usr 65534:65534"]);
    // On disk they are everybody's constants: the next start may have another range.
    let disk = host.dir_of(id).join("volume");
    for path in ["workspace/new", "home/home", "upper/var/tmp/over", "layers/in-repo/upper/moved/lib.rs"] {
        assert_eq!(owner(&disk.join(path)), (WORKSPACE_UID, WORKSPACE_UID), "{path}");
    }
    assert_eq!(owner(&disk.join("upper/var/tmp")), (0, 0));
    assert_eq!(fs::read_to_string(lower.join("src/lib.rs")).unwrap(), "shared\n");
}

#[tokio::test]
async fn a_range_goes_with_its_sandbox_also_after_a_crash() {
    let host = Host::new();
    let id = host.id();
    let sandbox = host.start(id).await;
    let before = claims(Path::new(CLAIMS), &host, id);
    assert_eq!(before.len(), 1);
    // Its run is over, its disk is not: it is still its range, and the next run has it again.
    say(&sandbox, "echo kept > /workspace/kept").await;
    sandbox.kill().await.unwrap();
    assert_eq!(claims(Path::new(CLAIMS), &host, id), before);
    let server = host.restarted();
    let again = server.start(&spec(id, limits())).await.unwrap();
    assert_eq!(say(&again, "cat kept; stat -c %u kept").await, "kept\n1000\n");
    assert_eq!(claims(Path::new(CLAIMS), &host, id), before);
    server.destroy(id).await.unwrap();
    assert_eq!(claims(Path::new(CLAIMS), &host, id), Vec::<String>::new());

    // Who died between the removal of the directory and that of the claim left the claim alone.
    let state = fs::canonicalize(host.dir.path()).unwrap();
    let id = host.id();
    let link = Path::new(CLAIMS).join("3276");
    std::os::unix::fs::symlink(state.join("sandboxes").join(id.to_string()), &link).unwrap();
    assert_eq!(server.list().await.unwrap(), [id]);
    server.destroy(id).await.unwrap();
    assert!(fs::symlink_metadata(&link).is_err());
    assert!(server.list().await.unwrap().is_empty());
}

async fn start(server: &impl Sandboxes, id: SandboxId) -> Result<Arc<dyn Sandbox>, String> {
    server.start(&spec(id, limits())).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn when_there_are_no_more_ranges_the_error_says_so_and_one_that_is_freed_helps() {
    let (host, other) = (Host::new(), Host::new());
    let claimed = tempfile::tempdir().unwrap();
    let ids = || HostIds::new(0x7800_0000, 2).unwrap().claimed_in(PathBuf::from(claimed.path()));
    // Two servers, of the same host.
    let (server, neighbour) = (open_with(host.dir.path(), ids()), open_with(other.dir.path(), ids()));
    let all = [host.id(), host.id(), host.id()];
    start(&server, all[0]).await.unwrap();
    start(&neighbour, all[1]).await.unwrap();
    assert_ne!(ids_of(&host, all[0]), ids_of(&other, all[1]));
    let error = start(&server, all[2]).await.err().unwrap();
    assert!(error.contains("all 2 ranges of host user ids are in use"), "{error}");
    neighbour.destroy(all[1]).await.unwrap();
    let sandbox = start(&server, all[2]).await.unwrap();
    assert_eq!(say(&sandbox, "id -u").await, "1000\n");
    let failed = start(&neighbour, all[1]).await.err().unwrap();
    assert!(failed.contains("all 2 ranges"), "{failed}");
    // A server that was thrown away, with its state, while nothing of it ran.
    server.destroy(all[0]).await.unwrap();
    std::os::unix::fs::symlink(
        format!("/nonexistent/sandboxes/{}", all[0]),
        claimed.path().join(free_range(claimed.path()).to_string()),
    )
    .unwrap();
    start(&neighbour, all[1]).await.unwrap();
    for (server, id) in [(&server, all[2]), (&neighbour, all[1])] {
        server.destroy(id).await.unwrap();
    }
    until("every claim is gone", || fs::read_dir(claimed.path()).unwrap().flatten().count() == 1).await;
}

fn free_range(claims: &Path) -> u32 {
    [0x7800_u32, 0x7801].into_iter().find(|name| fs::symlink_metadata(claims.join(name.to_string())).is_err()).unwrap()
}

#[tokio::test]
async fn where_files_cannot_be_translated_the_sandbox_still_starts_with_their_ids() {
    let host = Host::new();
    let claimed = tempfile::tempdir().unwrap();
    // Where no directory of claims can be made, there is nobody to ask which ranges are free.
    fs::write(claimed.path().join("file"), "").unwrap();
    let ids = HostIds::default().claimed_in(claimed.path().join("file/ids"));
    let server = open_with(host.dir.path(), ids);
    let id = host.id();
    let sandbox = start(&server, id).await.unwrap();
    assert_eq!(ids_of(&host, id), (WORKSPACE_UID, WORKSPACE_UID));
    assert_eq!(say(&sandbox, "echo x > new; stat -c %u:%g new").await, "1000:1000\n");
    server.destroy(id).await.unwrap();
}
