//! Processes of their own: started, measured from `/proc`, and ended.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The argument that makes this program one of the processes under test.
pub const ROLE: &str = "--role";
/// How long a start may take. Python's imports take long on a busy machine.
const LONGEST_START: Duration = Duration::from_secs(120);
/// Clock ticks a second in `/proc` (`USER_HZ`): 100 on every architecture that Rust runs on.
const TICKS: f64 = 100.0;

/// A process under test. Ended when it is dropped.
pub struct Member {
    child: Child,
    pub addresses: Vec<SocketAddr>,
}

impl Drop for Member {
    fn drop(&mut self) {
        // One that has ended by itself has nothing to say about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Member {
    /// This program in another role.
    pub fn role(role: &str, arguments: &[String]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([ROLE, role])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addresses = line.split_whitespace().map(|address| address.parse().unwrap()).collect();
        Self { child, addresses }
    }

    /// Another program, once it listens on this address.
    pub fn program(mut command: Command, address: SocketAddr, log: &Path) -> Result<Self, String> {
        let log_file = std::fs::File::create(log).map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(log_file.try_clone().unwrap()).stderr(log_file);
        let child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
        let mut member = Self { child, addresses: vec![address] };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = member.child.try_wait() {
                return Err(format!("ended at its start ({status}); see {}", log.display()));
            }
            if began.elapsed() > LONGEST_START {
                return Err(format!("did not listen within {LONGEST_START:?}; see {}", log.display()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(member)
    }

    /// Seconds of processor time that it and its children have used.
    pub fn processor_time(&self) -> f64 {
        processor_time(self.child.id())
    }

    /// What it and its children hold.
    pub fn memory(&self) -> Memory {
        let mut sum = Memory::default();
        for id in family(self.child.id()) {
            let status = read(id, "status");
            sum.resident += field(&status, "VmRSS:");
            sum.peak += field(&status, "VmHWM:");
            let rollup = read(id, "smaps_rollup");
            sum.share += field(&rollup, "Pss:");
            sum.own += field(&rollup, "Anonymous:");
        }
        sum
    }
}

/// What a process holds, in MiB. The kernel's socket buffers are in none of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// In memory now.
    pub resident: f64,
    /// The most that it ever was.
    pub peak: f64,
    /// In memory, what it shares with other processes divided among them.
    pub share: f64,
    /// What it has allocated.
    pub own: f64,
}

/// Processor time on this machine, in seconds: by this program and what it started, and by everybody.
#[derive(Clone, Copy)]
pub struct Machine {
    at: Instant,
    ours: f64,
    all: f64,
}

impl Machine {
    pub fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let numbers = stat.lines().next().unwrap().split_whitespace().skip(1);
        let ticks: Vec<f64> = numbers.map(|number| number.parse().unwrap()).collect();
        // user, nice, system, (idle, iowait), irq, softirq; steal is time that nobody here had.
        let all = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
        Self { at: Instant::now(), ours: processor_time(std::process::id()), all: all / TICKS }
    }

    /// How many cores others have used since `before`.
    pub fn others_since(self, before: Self) -> f64 {
        let ours = self.ours - before.ours;
        ((self.all - before.all - ours) / (self.at - before.at).as_secs_f64()).max(0.0)
    }
}

/// The load averages of the last 1, 5 and 15 minutes.
pub fn load_averages() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// A port that is free now.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Ends this process when the one that started it lets go of it, or dies.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}

/// A process and its descendants.
fn family(id: u32) -> Vec<u32> {
    let mut found = vec![id];
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|id| id.parse().ok()).flat_map(family));
    }
    found
}

fn processor_time(id: u32) -> f64 {
    let of = |id: u32| {
        let stat = read(id, "stat");
        // The name in brackets may hold anything. utime and stime are the 14th and 15th fields of the line.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
    };
    family(id).into_iter().map(of).sum()
}

fn read(id: u32, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default()
}

/// A line of kB, in MiB.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
