//! An origin to clone from, a work tree that stands in for a sandbox, and hand-made hostile objects.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orchestra_events::CommitId;

/// The user that stands in for the sandbox's: nobody when the tests run as root, else whoever runs them.
pub fn agent() -> (u32, u32) {
    if nix::unistd::getuid().is_root() {
        (65534, 65534)
    } else {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    }
}

/// Runs the host's git without anybody's configuration and returns what it printed.
pub fn git(dir: &Path, args: &[&str]) -> String {
    String::from_utf8(git_with(dir, args, b"")).expect("utf-8").trim_end().to_owned()
}

/// The same with bytes in and out.
pub fn git_with(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(args)
        .current_dir(dir)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([
            ("GIT_AUTHOR_NAME", "t"),
            ("GIT_AUTHOR_EMAIL", "t@t"),
            ("GIT_COMMITTER_NAME", "t"),
            ("GIT_COMMITTER_EMAIL", "t@t"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git is installed");
    child.stdin.take().expect("piped").write_all(input).expect("git reads");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A temporary folder that other users may enter.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("own folder");
    dir
}

/// The same in memory, or on disk where there is no such place.
pub fn folder_in_memory() -> tempfile::TempDir {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return folder() };
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("own folder");
    dir
}

/// Makes `root/acme/api.git` with two commits on `main` and one on `other`.
pub fn origin(root: &Path) -> PathBuf {
    let seed = root.join("seed");
    std::fs::create_dir_all(seed.join("src")).expect("writable");
    git(&seed, &["init", "-q", "-b", "main"]);
    std::fs::write(seed.join("README.md"), "one\n").expect("writable");
    git(&seed, &["add", "-A"]);
    git(&seed, &["commit", "-qm", "first"]);
    std::fs::write(seed.join("README.md"), "one\ntwo\n").expect("writable");
    std::fs::write(seed.join("src/run.sh"), "#!/bin/sh\necho hi\n").expect("writable");
    std::fs::set_permissions(seed.join("src/run.sh"), PermissionsExt::from_mode(0o755)).expect("own file");
    std::fs::write(seed.join(".gitignore"), "target/\n").expect("writable");
    std::fs::write(seed.join(".gitattributes"), "*.bat text eol=crlf\n").expect("writable");
    std::fs::write(seed.join("go.bat"), "echo hi\r\n").expect("writable");
    std::os::unix::fs::symlink("README.md", seed.join("link")).expect("writable");
    std::os::unix::fs::symlink("/etc/passwd", seed.join("outside")).expect("writable");
    git(&seed, &["add", "-A"]);
    git(&seed, &["commit", "-qm", "second"]);
    git(&seed, &["branch", "other", "HEAD~1"]);
    let bare = root.join("acme/api.git");
    std::fs::create_dir_all(root.join("acme")).expect("writable");
    git(root, &["clone", "-q", "--bare", "seed", "acme/api.git"]);
    bare
}

/// Runs an export or diff command in the work tree as the agent, with a clean environment.
pub fn in_sandbox(workspace: &Path, argv: &[String]) -> (Vec<u8>, String) {
    let (uid, gid) = agent();
    let mut command = Command::new(&argv[0]);
    command
        .args(&argv[1..])
        .current_dir(workspace)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if nix::unistd::getuid().is_root() {
        command.uid(uid).gid(gid);
    }
    let output = command.output().expect("bash is installed");
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a shell line in the work tree as the agent.
pub fn as_agent(workspace: &Path, line: &str) -> String {
    let argv = ["bash", "-c", &format!("export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1; {line}")].map(str::to_owned);
    let (out, err) = in_sandbox(workspace, &argv);
    format!("{}{err}", String::from_utf8_lossy(&out))
}

/// One entry of a hand-made tree.
pub struct Entry<'a>(pub &'a str, pub &'a [u8], pub String);

/// Objects that git itself refuses to make, in a scratch clone of the trusted repository.
pub struct Forge {
    dir: tempfile::TempDir,
    base: CommitId,
}

impl Forge {
    pub fn new(trusted: &Path, base: &CommitId) -> Self {
        let dir = folder();
        git(dir.path(), &["clone", "-q", "--bare", "--no-hardlinks", &trusted.to_string_lossy(), "x.git"]);
        Self { dir, base: base.clone() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("x.git")
    }

    pub fn blob(&self, content: &[u8]) -> String {
        self.object("blob", content)
    }

    pub fn object(&self, kind: &str, content: &[u8]) -> String {
        let args = ["hash-object", "-w", "--literally", "-t", kind, "--stdin"];
        String::from_utf8(git_with(&self.path(), &args, content)).expect("hex").trim().to_owned()
    }

    pub fn tree(&self, entries: &[Entry<'_>]) -> String {
        let mut raw = Vec::new();
        for Entry(mode, name, id) in entries {
            raw.extend_from_slice(mode.as_bytes());
            raw.push(b' ');
            raw.extend_from_slice(name);
            raw.push(0);
            raw.extend((0..id.len() / 2).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).expect("hex")));
        }
        self.object("tree", &raw)
    }

    pub fn commit(&self, tree: &str, parent: Option<&str>) -> String {
        let parent = parent.map(|id| format!("parent {id}\n")).unwrap_or_default();
        let text = format!("tree {tree}\n{parent}author a <a@a> 0 +0000\ncommitter a <a@a> 0 +0000\n\nx\n");
        self.object("commit", text.as_bytes())
    }

    /// What a sandbox would send for `tip`.
    pub fn export(&self, tip: &str) -> Vec<u8> {
        let revs = format!("{tip}\n^{}\n", self.base);
        let mut out = format!("tip {tip}\n").into_bytes();
        out.extend(git_with(&self.path(), &["pack-objects", "-q", "--revs", "--thin", "--stdout"], revs.as_bytes()));
        out
    }

    /// The export of a commit on the base with exactly this tree.
    pub fn export_tree(&self, entries: &[Entry<'_>]) -> Vec<u8> {
        let tree = self.tree(entries);
        self.export(&self.commit(&tree, Some(self.base.as_str())))
    }
}

/// What zlib makes of these bytes.
pub fn deflated(content: &[u8]) -> Vec<u8> {
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    deflate.write_all(content).expect("memory");
    deflate.finish().expect("memory")
}

/// The same for that many zeros.
pub fn deflated_zeros(size: u64) -> Vec<u8> {
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        deflate.write_all(&zeros).expect("memory");
    }
    deflate.finish().expect("memory")
}

/// A pack of these entries as they are, with the right header and hash (gitformat-pack(5)).
pub fn raw_pack(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend((entries.len() as u32).to_be_bytes());
    pack.extend(entries.iter().flatten());
    let mut sum = Command::new("sha1sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils");
    sum.stdin.take().expect("piped").write_all(&pack).expect("it reads");
    let output = sum.wait_with_output().expect("it ends");
    let hex = &String::from_utf8(output.stdout).expect("hex")[..40];
    pack.extend((0..20).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")));
    pack
}
