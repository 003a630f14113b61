//! The repositories that tasks work on, as the forge has them: seeded, served and inspected with git itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use orchestra_test_forges::GitServer;

/// The repository of the tests on the default (local) forge.
pub const REPO: &str = "acme/api";

/// What is in it at the beginning.
pub const FILES: [(&str, &str); 3] = [
    ("README.md", "# api\n\nAn API.\n"),
    ("main.tf", "terraform {\n  required_providers {\n    aws = { version = \"~> 5.0\" }\n  }\n}\n"),
    ("src/app.py", "def greet(name):\n    return \"Hello \" + name\n"),
];

/// Bare repositories, on disk and behind a git server over HTTP that wants a token.
pub struct Remotes {
    root: PathBuf,
    /// Serves the same repositories.
    pub http: GitServer,
}

/// Runs git with no configuration but its own; answers what it printed.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@localhost", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")])
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Remotes {
    /// Makes the repository and serves it.
    pub async fn seed(root: &Path, token: &str) -> Self {
        let (bare, work) = (root.join("acme/api.git"), root.join("seed"));
        for folder in [&bare, &work] {
            std::fs::create_dir_all(folder).unwrap();
        }
        git(&bare, &["init", "--quiet", "--bare"]);
        // Each move of a branch leaves a line: pushes can be counted.
        git(&bare, &["config", "core.logAllRefUpdates", "always"]);
        git(&bare, &["config", "http.receivepack", "true"]);
        git(&work, &["init", "--quiet"]);
        for (name, text) in FILES {
            std::fs::create_dir_all(work.join(name).parent().unwrap()).unwrap();
            std::fs::write(work.join(name), text).unwrap();
        }
        git(&work, &["add", "."]);
        git(&work, &["commit", "--quiet", "-m", "Begin"]);
        git(&work, &["push", "--quiet", bare.to_str().unwrap(), "HEAD:main"]);
        std::fs::remove_dir_all(&work).unwrap();
        Self { http: GitServer::start(root, token).await, root: root.to_owned() }
    }

    /// Adds a file to the first branch, as somebody else's commit.
    pub fn add(&self, path: &str, text: &str) {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["clone", "--quiet", self.bare().to_str().unwrap(), "."]);
        std::fs::write(dir.path().join(path), text).unwrap();
        git(dir.path(), &["add", "."]);
        git(dir.path(), &["commit", "--quiet", "-m", "Add a file"]);
        git(dir.path(), &["push", "--quiet", "origin", "HEAD:main"]);
    }

    /// The folder of the local forge.
    pub fn local_root(&self) -> &Path {
        &self.root
    }

    /// The bare repository.
    pub fn bare(&self) -> PathBuf {
        self.root.join("acme/api.git")
    }

    /// The branches, without the first one.
    pub fn branches(&self) -> Vec<String> {
        let all = git(&self.bare(), &["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
        all.lines().filter(|name| *name != "main").map(str::to_owned).collect()
    }

    /// The tree that the branch holds.
    pub fn tree(&self, branch: &str) -> String {
        git(&self.bare(), &["rev-parse", &format!("{branch}^{{tree}}")])
    }

    /// The commit that the branch holds.
    pub fn head(&self, branch: &str) -> String {
        git(&self.bare(), &["rev-parse", branch])
    }

    /// How many commits the branch has beyond the first one.
    pub fn commits(&self, branch: &str) -> usize {
        git(&self.bare(), &["rev-list", "--count", &format!("main..{branch}")]).parse().unwrap()
    }

    /// How often the branch was moved.
    pub fn pushes(&self, branch: &str) -> usize {
        std::fs::read_to_string(self.bare().join("logs/refs/heads").join(branch)).map_or(0, |log| log.lines().count())
    }

    /// From now on, the forge runs this in the repository after each push over HTTP, before it answers.
    pub fn after_push(&self, script: &str) {
        let hook = self.bare().join("hooks/post-receive");
        std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
        std::fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A file as the branch has it.
    pub fn file(&self, branch: &str, path: &str) -> String {
        git(&self.bare(), &["show", &format!("{branch}:{path}")])
    }

    /// Every file of the branch.
    pub fn files(&self, branch: &str) -> Vec<String> {
        git(&self.bare(), &["ls-tree", "-r", "--name-only", branch]).lines().map(str::to_owned).collect()
    }
}
