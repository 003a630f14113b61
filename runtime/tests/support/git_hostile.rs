//! What a hostile sandbox may send, and that none of it comes in.

use std::io::Write;

use super::repo::{Entry, Forge};
use super::*;
use orchestra_runtime::git::{ImportLimits, PackFault};

const FILE: &str = "100644";
const LINK: &str = "120000";

pub struct Scene {
    pub world: World,
    pub base: CommitId,
    pub forge: Forge,
    pub rules: ImportRules,
}

impl Scene {
    pub async fn new(limits: ImportLimits) -> Self {
        Self::with(ImportRules { limits, ..rules() }).await
    }

    pub async fn with(rules: ImportRules) -> Self {
        Self::on(World::new().await, rules).await
    }

    pub async fn on(world: World, rules: ImportRules) -> Self {
        let base = world.clone().await.commit;
        let forge = Forge::new(&world.path("trusted.git"), &base);
        Self { world, base, forge, rules }
    }

    pub async fn import(&self, pack: &[u8]) -> Result<Option<Imported>, GitError> {
        self.world.git.import(&self.world.path("trusted.git"), &self.base, pack, &self.rules).await
    }

    fn packs(&self) -> Vec<String> {
        let folder = self.world.path("trusted.git/objects/pack");
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .expect("there")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The import's refusal; and that it left nothing behind.
    pub async fn refused(&self, what: &str, pack: &[u8]) -> PackFault {
        self.refusal(what, pack).await.0
    }

    /// The same, with what its reader is told.
    pub async fn refusal(&self, what: &str, pack: &[u8]) -> (PackFault, String) {
        let before = self.packs();
        let result = self.import(pack).await;
        let error = result.err().unwrap_or_else(|| panic!("{what} came in"));
        assert_eq!(self.packs(), before, "{what}");
        assert!(!self.world.path("trusted.git/quarantine").exists(), "{what}");
        assert_eq!(code(&error), FailureCode::PushRejected, "{what}");
        match error {
            GitError::PackRejected { fault, detail } => {
                assert!(!detail.contains(|c: char| c.is_control()) && detail.len() < 1_500, "{what}: {detail:?}");
                (fault, detail)
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn trees_that_would_hurt_a_client_are_refused() {
    let scene = Scene::new(ImportLimits::default()).await;
    let forge = &scene.forge;
    let blob = forge.blob(b"x\n");
    let sub = forge.tree(&[Entry(FILE, b"config", blob.clone())]);
    let link = |target: &[u8]| forge.blob(target);
    let file = |name: &'static [u8]| vec![Entry(FILE, name, blob.clone())];
    let nested = |name: &'static [u8]| vec![Entry("40000", name, sub.clone())];
    let inside = |mode: &str, name: &[u8], id: String| {
        forge.tree(&[Entry(Box::leak(mode.to_owned().into_boxed_str()), name, id)])
    };
    for (what, tree, fault) in [
        (".git folder", nested(b".git"), PackFault::Path),
        (".GIT", nested(b".GIT"), PackFault::Path),
        ("git~1", nested(b"git~1"), PackFault::Path),
        ("HFS", nested(".g\u{200c}it".as_bytes()), PackFault::Path),
        ("NTFS stream", nested(b".git::$INDEX_ALLOCATION"), PackFault::Path),
        ("..", nested(b".."), PackFault::Path),
        (".", nested(b"."), PackFault::Path),
        ("a slash", file(b"a/b"), PackFault::Path),
        ("a backslash", file(b"..\\x"), PackFault::Path),
        ("a control character", file(b"a\x1b[31m"), PackFault::Path),
        ("deep inside", vec![Entry("40000", b"d", inside("40000", b".git", sub.clone()))], PackFault::Path),
        ("twins", vec![Entry(FILE, b"a", blob.clone()), Entry("40000", b"a", sub.clone())], PackFault::Path),
        ("absolute link", vec![Entry(LINK, b"l", link(b"/etc/passwd"))], PackFault::Symlink),
        ("climbing link", vec![Entry(LINK, b"l", link(b"../x"))], PackFault::Symlink),
        ("climbing link inside", vec![Entry("40000", b"d", inside(LINK, b"l", link(b"../../x")))], PackFault::Symlink),
        ("link into .git", vec![Entry(LINK, b"l", link(b".git/hooks"))], PackFault::Symlink),
        ("link named .gitmodules", vec![Entry(LINK, b".gitmodules", link(b"x"))], PackFault::Symlink),
        ("odd mode", vec![Entry("100777", b"a", blob.clone())], PackFault::Mode),
        ("device", vec![Entry("020000", b"a", blob.clone())], PackFault::Malformed),
    ] {
        assert_eq!(scene.refused(what, &forge.export_tree(&tree)).await, fault, "{what}");
    }
    let tree = forge.tree(&[Entry("160000", b"sub", scene.base.to_string())]);
    let tip = forge.commit(&tree, Some(scene.base.as_str()));
    assert_eq!(scene.refused("gitlink", &forge.export(&tip)).await, PackFault::Gitlink);
    // A bad tree in the middle of the history, gone at its end.
    let bad = forge.commit(&forge.tree(&nested(b".git")), Some(scene.base.as_str()));
    let tip = forge.commit(&forge.tree(&file(b"a")), Some(&bad));
    assert_eq!(scene.refused("in between", &forge.export(&tip)).await, PackFault::Path);
    // No descent from the base.
    let tree = forge.tree(&file(b"a"));
    assert_eq!(scene.refused("orphan", &forge.export(&forge.commit(&tree, None))).await, PackFault::Ancestry);
    let older = repo::git(&forge.path(), &["rev-parse", &format!("{}^", scene.base)]);
    assert_eq!(scene.refused("sibling", &forge.export(&forge.commit(&tree, Some(&older)))).await, PackFault::Ancestry);
    // The same way lets an honest tree in.
    let good = [Entry(FILE, b"a", blob.clone()), Entry("40000", b"d", inside(LINK, b"l", link(b"../a")))];
    let imported = scene.import(&forge.export_tree(&good)).await;
    assert!(imported.expect("an honest tree").expect("a change").files_changed > 2);
}

#[tokio::test]
async fn damaged_and_lying_streams_are_refused() {
    let scene = Scene::new(ImportLimits::default()).await;
    let noise: Vec<u8> = (0..20_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let blob = scene.forge.blob(&noise);
    let pack = scene.forge.export_tree(&[Entry(FILE, b"noise", blob)]);
    let header = pack.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    for cut in [header, header + 7, header + 40, pack.len() / 2, pack.len() - 1] {
        assert_eq!(scene.refused("truncated", &pack[..cut]).await, PackFault::Malformed, "{cut}");
    }
    for at in [header, header + 9, header + 20, pack.len() / 2, pack.len() - 3] {
        let mut flipped = pack.clone();
        flipped[at] ^= 0x10;
        // One of them makes the header announce a quarter of a billion objects.
        let fault = scene.refused("bit-flipped", &flipped).await;
        assert!(matches!(fault, PackFault::Malformed | PackFault::TooLarge), "{at}: {fault:?}");
    }
    let mut other = format!("tip {}\n", "0123456789".repeat(4)).into_bytes();
    other.extend(&pack[header..]);
    assert_eq!(scene.refused("another tip", &other).await, PackFault::Malformed);
    let mut longer = pack.clone();
    longer.extend([0; 5000]);
    let after = scene.import(&longer).await;
    assert!(!matches!(after, Ok(Some(_))), "bytes after the end: {after:?}");
    for line in ["", "tip\n", "tip zz\n", "tip 0123\n", "failed unreadable\n", &"x".repeat(10_000)] {
        let error = scene.import(line.as_bytes()).await.expect_err(line);
        assert!(matches!(error, GitError::ExportFailed { .. }), "{line:?}: {error:?}");
    }
    // An object that is referred to and not sent.
    let absent = "1234567890".repeat(4);
    let tree = scene.forge.tree(&[Entry(FILE, b"a", absent)]);
    let tip = scene.forge.commit(&tree, Some(scene.base.as_str()));
    let mut missing = format!("tip {tip}\n").into_bytes();
    let names = format!("{tip}\n{tree}\n");
    missing.extend(repo::git_with(&scene.forge.path(), &["pack-objects", "-q", "--stdout"], names.as_bytes()));
    assert_eq!(scene.refused("missing object", &missing).await, PackFault::Malformed);
}

#[tokio::test]
async fn sizes_have_limits_and_a_bomb_only_kills_the_child() {
    let small = ImportLimits {
        pack_bytes: 4096,
        objects: 50,
        file_bytes: 100_000,
        total_bytes: 150_000,
        ..ImportLimits::default()
    };
    let scene = Scene::new(small).await;
    let forge = &scene.forge;
    let noise: Vec<u8> = (0..20_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let blob = forge.blob(&noise);
    assert_eq!(
        scene.refused("a large pack", &forge.export_tree(&[Entry(FILE, b"a", blob)])).await,
        PackFault::TooLarge
    );
    let blob = forge.blob(&vec![b'x'; 100_001]);
    assert_eq!(
        scene.refused("a large file", &forge.export_tree(&[Entry(FILE, b"a", blob)])).await,
        PackFault::FileTooLarge
    );
    let two = [Entry(FILE, b"a", forge.blob(&vec![b'a'; 90_000])), Entry(FILE, b"b", forge.blob(&vec![b'b'; 90_000]))];
    assert_eq!(scene.refused("large files together", &forge.export_tree(&two)).await, PackFault::TooLarge);
    let names: Vec<String> = (0..60).map(|n| format!("{n:03}")).collect();
    let many: Vec<_> = names.iter().map(|name| Entry(FILE, name.as_bytes(), forge.blob(name.as_bytes()))).collect();
    assert_eq!(scene.refused("many objects", &forge.export_tree(&many)).await, PackFault::TooLarge);

    // Ten folders that each hold the one before ten times: ten objects, ten thousand million files.
    let scene = Scene::new(ImportLimits::default()).await;
    let mut level = scene.forge.tree(&[Entry(FILE, b"a", scene.forge.blob(b"x"))]);
    for _ in 0..10 {
        let names: Vec<String> = (0..10).map(|n| format!("{n}")).collect();
        let entries: Vec<_> = names.iter().map(|name| Entry("40000", name.as_bytes(), level.clone())).collect();
        level = scene.forge.tree(&entries);
    }
    let tip = scene.forge.commit(&level, Some(scene.base.as_str()));
    assert_eq!(scene.refused("a tree of trees", &scene.forge.export(&tip)).await, PackFault::TooLarge);

    // Half a megabyte that unpacks to half a gigabyte: the memory limit first, then the processor's.
    for (memory_bytes, cpu_seconds) in [(200 << 20, 60), (4 << 30, 1)] {
        let scene = Scene::new(ImportLimits { memory_bytes, cpu_seconds, ..ImportLimits::default() }).await;
        let started = std::time::Instant::now();
        let fault = scene.refused("a bomb", &bomb(512 << 20)).await;
        assert!(matches!(fault, PackFault::LimitReached | PackFault::Malformed), "{fault:?}");
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }
}

/// A pack with one blob of `size` zero bytes (gitformat-pack(5)).
fn bomb(size: u64) -> Vec<u8> {
    let mut pack = format!("tip {}\n", "0123456789".repeat(4)).into_bytes();
    pack.extend(b"PACK\0\0\0\x02\0\0\0\x01");
    let mut rest = size >> 4;
    let mut byte = 0x30 | (size & 15) as u8;
    while rest > 0 {
        pack.push(byte | 0x80);
        byte = (rest & 0x7f) as u8;
        rest >>= 7;
    }
    pack.push(byte);
    let mut deflate = flate2::write::ZlibEncoder::new(pack, flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        deflate.write_all(&zeros).expect("memory");
    }
    deflate.finish().expect("memory")
}

#[tokio::test]
async fn a_sandbox_that_stalls_is_left_at_the_deadline() {
    let limit = Duration::from_millis(500);
    let world = World::with(GitConfig { import_timeout: limit, ..config() }).await;
    let base = world.clone().await.commit;
    for start in ["", "tip", "tip 0123456789012345678901234567890123456789\nPACK"] {
        let (mut sandbox, host) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut sandbox, start.as_bytes()).await.expect("room");
        let error = world.git.import(&world.path("trusted.git"), &base, host, &rules()).await.expect_err("stalled");
        assert!(matches!(error, GitError::DeadlineExceeded { .. }), "{error:?}");
        assert!(!world.path("trusted.git/quarantine").exists());
    }
}
