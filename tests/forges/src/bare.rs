//! Bare repositories on disk: what a stand-in's branches and commits are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A bare repository.
#[derive(Debug, Clone)]
pub struct Bare(PathBuf);

impl Bare {
    /// The one at `{root}/{path}.git`.
    pub fn at(root: &Path, path: &str) -> Self {
        Self(root.join(format!("{path}.git")))
    }

    /// Makes it, with one commit on `main`; what is there already is left as it is.
    pub fn make(root: &Path, path: &str) -> Self {
        let bare = Self::at(root, path);
        if bare.0.join("HEAD").exists() {
            return bare;
        }
        std::fs::create_dir_all(&bare.0).expect("a folder");
        bare.git(&["init", "--quiet", "--bare", "--initial-branch=main"]);
        bare.git(&["config", "http.receivepack", "true"]);
        let tree = bare.git(&["hash-object", "-t", "tree", "-w", "/dev/null"]);
        let first = bare.git(&["commit-tree", &tree, "-m", "Begin"]);
        bare.git(&["update-ref", "refs/heads/main", &first]);
        bare
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a branch with one commit beyond `main`; answers the commit.
    pub fn branch(&self, name: &str) -> String {
        let commit = self.git(&["commit-tree", "main^{tree}", "-p", "main", "-m", name]);
        self.git(&["update-ref", &format!("refs/heads/{name}"), &commit]);
        commit
    }

    /// The commit of a branch.
    pub fn head(&self, branch: &str) -> Option<String> {
        let reference = format!("refs/heads/{branch}");
        self.run(&["rev-parse", "--quiet", "--verify", &reference]).ok()
    }

    /// Whether this commit is there.
    pub fn has_commit(&self, id: &str) -> bool {
        id.bytes().all(|byte| byte.is_ascii_hexdigit())
            && self.run(&["cat-file", "-e", &format!("{id}^{{commit}}")]).is_ok()
    }

    fn git(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("git {arguments:?}: {error}"))
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(&self.0)
            .args(["-c", "user.name=Tester", "-c", "user.email=tester@localhost"])
            .args(arguments)
            .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")])
            .output()
            .expect("git is installed");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
