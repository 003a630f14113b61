//! What the demonstration works on: a small repository with a bug, and a model that knows how to mend it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The sentence that the agent is given.
pub const TASK: &str = "The unit test fails. Find out why, mend the code (not the test) and run the tests again.";

/// What the scripted model says.
pub const SCRIPT: &str = include_str!("script.json");

const FILES: [(&str, &str); 4] = [
    (".gitignore", "__pycache__/\n"),
    ("README.md", "# greeter\n\nSays hello, politely.\n\nRun the tests with `python3 -m unittest`.\n"),
    ("greeter.py", "\"\"\"Says hello.\"\"\"\n\n\ndef greet(name: str) -> str:\n    return \"Hello \" + name\n"),
    (
        "test_greeter.py",
        "import unittest\n\nfrom greeter import greet\n\n\nclass GreetTest(unittest.TestCase):\n    \
         def test_is_polite(self):\n        self.assertEqual(greet(\"Ada\"), \"Hello, Ada!\")\n\n\n\
         if __name__ == \"__main__\":\n    unittest.main()\n",
    ),
];

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=Demo", "-c", "user.email=demo@localhost", "-c", "init.defaultBranch=main"])
        .args(arguments)
        // The user's own configuration, hooks included, has no part in a demonstration.
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")])
        .output()
        .context("cannot run git; install it")?;
    if !output.status.success() {
        bail!("git {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes the bare repository `acme/greeter.git` below `root`, and returns its path.
pub fn seed(root: &Path) -> anyhow::Result<PathBuf> {
    let bare = root.join("acme/greeter.git");
    let work = root.join("seed");
    for folder in [&bare, &work] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    git(&bare, &["init", "--quiet", "--bare"])?;
    git(&work, &["init", "--quiet"])?;
    for (name, text) in FILES {
        fs::write(work.join(name), text)?;
    }
    git(&work, &["add", "."])?;
    git(&work, &["commit", "--quiet", "-m", "Say hello"])?;
    let target = bare.to_str().context("the data folder's path is not UTF-8")?;
    git(&work, &["push", "--quiet", target, "HEAD:main"])?;
    fs::remove_dir_all(&work)?;
    Ok(bare)
}
