//! A server of its own process: started, asked, measured from `/proc`, and stopped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a start or a stop may take before the benchmark gives up.
const LIMIT: Duration = Duration::from_secs(120);

/// A running `orchestra serve`.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// From the start of the process to the first 200 of `/readyz`.
    pub ready: Duration,
    /// The admin key, when this was the first start on this folder.
    pub admin_key: Option<String>,
    /// What it logs, where somebody waits for a line of it.
    log: BufReader<std::process::ChildStderr>,
}

/// What a process holds, in MiB.
#[derive(Clone, Copy)]
pub struct Memory {
    pub rss: f64,
    pub pss: f64,
}

/// The program under test: the one Cargo built for this benchmark, or the one in `ORCHESTRA_BIN`.
pub fn program() -> String {
    std::env::var("ORCHESTRA_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_orchestra").to_owned())
}

impl Server {
    /// Starts a server on this folder and waits until it is ready.
    pub fn start(data: &Path, settings: &[(&str, &str)]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let began = Instant::now();
        let mut child = Command::new(program())
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data)
            .env_clear()
            .env("ORCHESTRA_LOG", "info")
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = loop {
            if get(address, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                let ready = began.elapsed();
                let log = BufReader::new(child.stderr.take().unwrap());
                break Self { child, address, ready, admin_key: None, log };
            }
            assert!(began.elapsed() < LIMIT, "the server is not ready after {LIMIT:?}");
            if let Some(status) = child.try_wait().unwrap() {
                let mut why = String::new();
                let _ = child.stderr.take().unwrap().read_to_string(&mut why);
                panic!("the server ended: {status}: {why}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        for line in BufReader::new(server.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(key) = line.trim().strip_prefix("orc_") {
                server.admin_key = Some(format!("orc_{key}"));
            }
            if line.starts_with("Orchestra listens") {
                break;
            }
        }
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until the server has logged that it serves, which is when all open tasks are taken up.
    pub fn wait_until_resumed(&mut self) {
        let mut line = String::new();
        while !line.contains("\"serving\"") {
            line.clear();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the server ended");
        }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    pub fn memory(&self) -> Memory {
        let mebibytes = |text: &str, field: &str| {
            let line = text.lines().find(|line| line.starts_with(field)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        Memory { rss: mebibytes(&self.proc("status"), "VmRSS:"), pss: mebibytes(&self.proc("smaps_rollup"), "Pss:") }
    }

    /// Processor time used so far.
    pub fn processor_time(&self) -> Duration {
        let stat = self.proc("stat");
        // The fields after the command's closing bracket; user and system time are the 12th and 13th of them.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Asks it to end, and waits for that.
    pub fn stop(self) {
        self.end(libc::SIGTERM);
    }

    /// Ends it as a crash would.
    pub fn kill(self) {
        self.end(libc::SIGKILL);
    }

    fn end(mut self, signal: i32) {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < LIMIT, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The answer to a request on a connection of its own; `None` while nobody listens.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.set_read_timeout(Some(LIMIT)).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}
