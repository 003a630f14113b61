//! The server as a process of its own.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::PATIENCE;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_orchestra");

/// A running server.
pub struct Process {
    /// Where it listens.
    pub url: String,
    /// The admin key, when this was the first start.
    pub admin_key: Option<String>,
    child: Child,
}

/// A command of ours, with nothing in its environment that would configure it.
pub fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ORCHESTRA_") || name.ends_with("_API_KEY")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A log file that goes on after a restart.
pub fn log(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// An address of the loopback network that nobody else has: whoever starts again after a kill finds its port as it left it,
/// which at the address of everybody could have gone to another program meanwhile.
fn own_address() -> String {
    static SERVERS: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(256).wrapping_add(SERVERS.fetch_add(1, Ordering::Relaxed));
    let [_, high, middle, low] = number.to_be_bytes();
    format!("127.{}.{middle}.{low}:0", high % 128 + 64)
}

impl Process {
    /// Starts it on the data folder of the house and waits until it serves.
    pub async fn start(house: &Path, config: &Path, address: Option<&str>, environment: &[(String, String)]) -> Self {
        let mut child = program()
            .arg("serve")
            .args(["--listen", &address.map_or_else(own_address, str::to_owned)])
            .arg("--data")
            .arg(house.join("data"))
            .arg("--config")
            .arg(config)
            .envs(environment.iter().cloned())
            .stdout(Stdio::piped())
            .stderr(log(&house.join("server.log")))
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut admin_key = None;
        let serving = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(url) = line.strip_prefix("Orchestra listens on ") {
                    return url.to_owned();
                }
                if line.trim().starts_with("orc_") {
                    admin_key = Some(line.trim().to_owned());
                }
            }
            panic!("the server ended: {}", std::fs::read_to_string(house.join("server.log")).unwrap_or_default())
        };
        let url = tokio::time::timeout(PATIENCE, serving).await.expect("the server serves in time");
        Self { url, admin_key, child }
    }

    /// `kill -9`, and waits until it is dead.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        // SAFETY: a plain system call; the process is our own child and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").unwrap();
        assert!(ended.success(), "{ended}");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// `kill -9`, where nothing can be awaited.
    #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait in any other way")]
    pub fn kill_now(mut self) {
        let _ = self.child.start_kill();
        while matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
