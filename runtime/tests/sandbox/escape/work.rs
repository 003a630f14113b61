//! The work tree as a trap: links, names and attributes that lead whoever follows them elsewhere.
//!
//! The host has few ways to touch what a sandbox wrote: mounting its disk again, laying files under a folder of it, asking how
//! full it is, removing it, and reading what commands *inside* say. Here each of them meets links to a file of the host's.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use orchestra_runtime::sandbox::{Exec, Exit, Sandboxes};
use tokio::io::AsyncReadExt;

use super::{Attempt, all_fail, attempt};
use crate::host::{Host, limits, say, sh, spec, text};

const NOT_THERE: &str = "the host's files have no name in here";

pub const ATTEMPTS: &[Attempt] = &[
    attempt("up and out of the work tree", "read('/workspace/../../../../../../../HOST_FILE')", "ENOENT", NOT_THERE),
    attempt(
        "a link to a file of the host's",
        "os.symlink('HOST_FILE', '/workspace/link'); answer = read('/workspace/link')",
        "ENOENT",
        NOT_THERE,
    ),
    attempt(
        "a link through its own root",
        "os.symlink('/proc/self/rootHOST_FILE', '/workspace/root'); answer = read('/workspace/root')",
        "ENOENT",
        NOT_THERE,
    ),
    attempt(
        "a link through its own folder",
        "os.symlink('/proc/self/cwd/../../../..HOST_FILE', '/workspace/cwd'); answer = read('/workspace/cwd')",
        "ENOENT",
        NOT_THERE,
    ),
    attempt(
        "the host's file by the way of a parent's descriptor",
        "read(f'/proc/{os.getppid()}/rootHOST_FILE')",
        "ENOENT",
        NOT_THERE,
    ),
    attempt("the sandbox's own disk", "read('/sandbox/volume.ext4')", "ENOENT", NOT_THERE),
    attempt("what lies over the image", "tried(lambda: os.listdir('/upper'))", "ENOENT", NOT_THERE),
    attempt(
        "the disk's top folder",
        "sorted(os.listdir('/workspace/..')) == sorted(os.listdir('/'))",
        "True",
        "above the work tree is the image",
    ),
    attempt(
        "a hard link to a file of the image",
        "tried(lambda: os.link('/etc/passwd', '/var/tmp/linked'))",
        "EPERM|EACCES|EXDEV",
        "only files of one's own may be linked",
    ),
    attempt(
        "a hard link to another mount",
        "tried(lambda: os.link('/orch/init', '/workspace/init'))",
        "EXDEV|EPERM|EACCES",
        "links do not cross mounts",
    ),
    attempt(
        "a hard link to a descriptor",
        "f = os.open('/etc/passwd', os.O_RDONLY); answer = call(265, f, b'', -100, b'/workspace/passwd', 0x1000)",
        "ENOENT|EPERM|EXDEV|EACCES",
        "that needs a capability",
    ),
    attempt(
        "a name with no end",
        "tried(lambda: open('/workspace/' + 'x' * 300, 'w'))",
        "ENAMETOOLONG",
        "names have a limit",
    ),
    attempt(
        "links in a circle",
        "os.symlink('/workspace/b', '/workspace/a'); os.symlink('/workspace/a', '/workspace/b'); answer = read('/workspace/a')",
        "ELOOP",
        "the kernel counts them",
    ),
    attempt(
        "attributes without end",
        "f = '/workspace/attributes'; open(f, 'w').close()\ntry:\n    for i in range(100000): os.setxattr(f, f'user.{i}', b'x' * 4000)\n    answer = 'allowed'\nexcept OSError as e: answer = errno.errorcode[e.errno]",
        "ENOSPC|EDQUOT|E2BIG|ERANGE",
        "a file has one block for them",
    ),
];

/// A file of the host's, whose path and content no sandbox may learn.
fn canary(host: &Host) -> (std::path::PathBuf, &'static str) {
    let path = host.dir.path().join("canary");
    let words = "words-that-only-the-host-has";
    fs::write(&path, words).unwrap();
    (path, words)
}

#[tokio::test]
async fn no_name_in_a_sandbox_is_a_file_of_the_host() {
    let host = Host::new();
    let (file, _) = canary(&host);
    let sandbox = host.start(host.id()).await;
    all_fail(&sandbox, ATTEMPTS, &[("HOST_FILE", file.display().to_string())]).await;
}

/// The file tools and whatever else the server runs inside are commands like any other: a link leads them as far as the agent's
/// own shell.
#[tokio::test]
async fn the_file_tools_follow_no_link_out() {
    let host = Host::new();
    let (file, words) = canary(&host);
    let sandbox = host.start(host.id()).await;
    let file = file.display();
    let plant = format!(
        "ln -s {file} link; ln -s / root; mkdir d; ln -s ../../../../.. d/up; ln -s {file} d/link; ln -s /etc/shadow shadow; ln -s /proc/1/environ environ"
    );
    assert_eq!(say(&sandbox, &plant).await, "");
    let calls = [
        ("read", "{\"path\":\"link\"}".to_owned()),
        ("read", format!("{{\"path\":\"{file}\"}}")),
        ("read", format!("{{\"path\":\"d/up{file}\"}}")),
        ("read", format!("{{\"path\":\"root{file}\"}}")),
        ("read", "{\"path\":\"shadow\"}".to_owned()),
        ("read", "{\"path\":\"environ\"}".to_owned()),
        ("write", "{\"path\":\"link\",\"content\":\"theirs\"}".to_owned()),
        ("write", "{\"path\":\"root/etc/passwd\",\"content\":\"theirs\"}".to_owned()),
        ("edit", "{\"path\":\"link\",\"old\":\"words\",\"new\":\"theirs\"}".to_owned()),
        ("glob", "{\"pattern\":\"root/**/canary\"}".to_owned()),
        ("grep", format!("{{\"pattern\":\"{}\",\"path\":\"/\"}}", &words[..12])),
    ];
    for (number, (tool, call)) in calls.into_iter().enumerate() {
        let argv = ["/orch/init", "tool", tool].map(str::to_owned).to_vec();
        let exec = Exec { argv, stdin: call.clone().into_bytes(), ..sh(&format!("tool-{number}"), "") };
        let outcome = sandbox.exec(exec, None).await.unwrap();
        let said = text(&outcome);
        assert!(!said.contains(words), "{tool} {call}: {said}");
        let nothing = said.contains("No file") || said.contains("Nothing matches");
        assert!(outcome.exit != Exit::Code(0) || nothing || said.trim().is_empty(), "{tool} {call}: {said}");
    }
    assert_eq!(fs::read_to_string(host.dir.path().join("canary")).unwrap(), words);
}

/// What a program writes for the server to read (its output in a file, a pack) is read by a command inside, through a pipe.
#[tokio::test]
async fn what_the_server_reads_out_is_read_from_inside() {
    let host = Host::new();
    let (file, words) = canary(&host);
    let sandbox = host.start(host.id()).await;
    let plant = format!("ln -s {0} harness.log; rm -rf .git; ln -s {0} .git", file.display());
    assert_eq!(say(&sandbox, &plant).await, "");
    for argv in [
        vec!["tail", "-c", "+1", "harness.log"],
        vec!["cat", ".git"],
        vec!["git", "rev-parse", "HEAD"],
        vec!["git", "bundle", "create", "-", "HEAD"],
    ] {
        let exec = Exec { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..sh(&argv.join("-"), "") };
        let mut piped = sandbox.exec_piped(exec).await.unwrap();
        let mut said = Vec::new();
        piped.read_to_end(&mut said).await.unwrap();
        let outcome = piped.finish().await.unwrap();
        let errors = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(said.is_empty() && !errors.contains(words), "{argv:?}: {said:?} {errors}");
        assert!(matches!(outcome.exit, Exit::Code(code) if code != 0), "{argv:?}: {outcome:?}");
        assert!(
            errors.contains("No such file")
                || errors.contains("not a git repository")
                || errors.contains("Need a repository")
                || errors.contains("invalid gitfile"),
            "{argv:?}: {errors}"
        );
    }
}

/// How full a disk is, is asked of the disk and not of any name on it.
#[tokio::test]
async fn usage_counts_the_disk_and_not_what_links_name() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    let before = sandbox.usage().await.unwrap();
    say(&sandbox, "ln -s /proc big; ln -s / all; mkdir -p a/b; ln -s ../.. a/b/up").await;
    let after = sandbox.usage().await.unwrap();
    assert!(after.disk_used_bytes - before.disk_used_bytes < 1 << 20, "{before:?} {after:?}");
    assert_eq!(after.disk_bytes, before.disk_bytes);
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode())
}

/// A disk that a sandbox has had, mounted and started on once more: nothing is made, owned or mounted through its links.
#[tokio::test]
async fn a_second_start_follows_no_link_on_the_disk() {
    let host = Host::new();
    let id = host.id();
    let (file, _) = canary(&host);
    let victim = host.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let (of_file, of_victim) = (owner(&file), owner(&victim));
    let sandbox = host.start(id).await;
    let plant = format!(
        "ln -s {0} upper; ln -s {0} repo; ln -s {0} home; ln -s {1} volume; rm -rf /home/agent/.[a-z]* ; ln -s {0} /home/agent/.cache; echo planted",
        victim.display(),
        file.display()
    );
    assert_eq!(say(&sandbox, &plant).await, "planted\n");
    sandbox.kill().await.unwrap();
    // Laying files under a folder whose name is a link now.
    let volume = host.sandboxes.create_volume(id, limits().disk_bytes).await.unwrap();
    let lower = tempfile::tempdir().unwrap();
    fs::write(lower.path().join("f"), "lower").unwrap();
    let refused = volume.lay("repo", lower.path()).await;
    assert_eq!((owner(&file), owner(&victim)), (of_file, of_victim), "a link was followed to give its target away");
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("is not a folder"), "{error}");
    let sandbox = host.sandboxes.start(&spec(id, limits())).await.unwrap();
    assert_eq!(say(&sandbox, "readlink repo; ls -A / | grep -c sandbox").await, format!("{}\n0\n", victim.display()));
    host.sandboxes.destroy(id).await.unwrap();
    assert_eq!((owner(&file), owner(&victim)), (of_file, of_victim));
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "something was put there");
}

/// Removal unmounts a disk and removes one file: it walks nothing.
#[tokio::test]
async fn removal_walks_nothing_that_a_sandbox_made() {
    let host = Host::new();
    let id = host.id();
    let victim = host.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("kept"), "kept").unwrap();
    let sandbox = host.start(id).await;
    let plant = format!(
        "ln -s {0} a; mkdir d; ln -s {0} d/b; ln -s / root; mkdir -p $(printf 'x/%.0s' $(seq 400)); chmod 0 d; echo planted",
        victim.display()
    );
    assert_eq!(say(&sandbox, &plant).await, "planted\n");
    // And one that nobody in a sandbox could make: a link where the server expects the disk's folder.
    host.sandboxes.destroy(id).await.unwrap();
    let other = host.id();
    let _ = fs::create_dir(host.dir_of(other));
    symlink(&victim, host.dir_of(other).join("volume")).unwrap();
    let _ = host.sandboxes.destroy(other).await;
    assert_eq!(fs::read_to_string(victim.join("kept")).unwrap(), "kept");
}
