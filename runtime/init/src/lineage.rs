//! Which processes belong to a command, whatever they did to leave it, and killing all of them.
//!
//! A process may make a session of its own, lose its parent and wash its environment; there is no control group in a
//! sandbox to hold it. So a command claims its session, every descendant of what it claims, what bears its mark in its
//! environment, and an orphan without any mark that came up after it and that no other running command may claim.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that marks a command's processes; its value is the command's number.
pub const MARK: &str = "ORCHESTRA_EXEC";
/// Passes over the process table when a command is killed; what forks between two passes is caught by the next one, and
/// a pass that finds nobody new is the last.
const KILL_PASSES: usize = 64;
/// Most of an environment that is searched for a mark: more than the kernel takes for arguments and environment together.
const MAX_ENVIRONMENT: u64 = 8 * 1024 * 1024;
/// The process that every orphan becomes a child of.
const INIT: i32 = 1;

/// What a command may claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its session, which is the process that it began as.
    pub session: i32,
    /// Its number.
    pub mark: u64,
    /// When it began, in the kernel's ticks since it booted.
    pub since: u64,
}

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    since: u64,
    dead: bool,
}

impl Process {
    /// Out of `/proc/<pid>/stat`: the fields after the name, which may itself hold spaces and brackets.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            dead: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            since: fields.get(19)?.parse().ok()?,
        })
    }

    fn read(pid: i32) -> Option<Self> {
        let stat = File::open(format!("/proc/{pid}/stat")).and_then(io::read_to_string).ok()?;
        Self::parse(pid, &stat)
    }
}

/// When a process began, in ticks since boot; 0 when it is gone.
pub fn since(pid: i32) -> u64 {
    Process::read(pid).map_or(0, |process| process.since)
}

fn table() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Process::read).filter(|process| !process.dead && process.pid != INIT).collect()
}

/// The mark in a process's environment, if it can be read and has one.
fn mark_of(pid: i32) -> Option<u64> {
    let mut environment = Vec::new();
    File::open(format!("/proc/{pid}/environ")).ok()?.take(MAX_ENVIRONMENT).read_to_end(&mut environment).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = std::str::from_utf8(variable).ok()?.strip_prefix(MARK)?.strip_prefix('=')?;
        value.parse().ok()
    })
}

/// The processes of the table that a command claims. `running` are the claims of all running commands, its own too or not.
fn claimed(claim: Claim, running: &[Claim], table: &[Process], mark_of: impl Fn(i32) -> Option<u64>) -> HashSet<i32> {
    let parents: HashMap<i32, i32> = table.iter().map(|process| (process.pid, process.parent)).collect();
    let others = || running.iter().filter(|other| other.session != claim.session);
    let is_claimed = |process: &Process| {
        if process.session == claim.session {
            return true;
        }
        if process.since < claim.since || others().any(|other| other.session == process.session) {
            return false;
        }
        match mark_of(process.pid) {
            Some(mark) => mark == claim.mark,
            // Nobody else running can have started it, or only somebody that has a parent to show for it.
            None => process.parent == INIT && !others().any(|other| other.since <= process.since),
        }
    };
    let mut found: HashSet<i32> =
        table.iter().filter(|process| is_claimed(process)).map(|process| process.pid).collect();
    for process in table {
        // Up to an ancestor that is claimed. A table that was read while it changed may hold a circle.
        let mut pid = process.pid;
        for _ in 0..table.len() {
            match parents.get(&pid) {
                Some(parent) if found.contains(parent) => {
                    found.insert(process.pid);
                    break;
                }
                Some(parent) => pid = *parent,
                None => break,
            }
        }
    }
    found
}

/// Kills every process that a command claims.
pub fn kill_all(claim: Claim, running: &[Claim]) {
    let _ = kill(Pid::from_raw(-claim.session), Signal::SIGKILL);
    let mut killed = HashSet::new();
    for _ in 0..KILL_PASSES {
        let mut news = false;
        for pid in claimed(claim, running, &table(), mark_of) {
            news |= killed.insert(pid);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if !news {
            return;
        }
    }
}

/// Sends a signal to every process of a command's session; those that have left it are only ever killed.
pub fn signal_session(session: i32, signal: Signal) {
    for process in table().iter().filter(|process| process.session == session) {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Claim = Claim { session: 10, mark: 1, since: 100 };
    const THEIRS: Claim = Claim { session: 20, mark: 2, since: 50 };

    fn process(pid: i32, parent: i32, session: i32, since: u64) -> Process {
        Process { pid, parent, session, since, dead: false }
    }

    fn of(running: &[Claim], table: &[Process], marks: &[(i32, u64)]) -> Vec<i32> {
        let mark = |pid| marks.iter().find(|(marked, _)| *marked == pid).map(|(_, mark)| *mark);
        let mut found: Vec<_> = claimed(OURS, running, table, mark).into_iter().collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn the_table_is_read_past_any_name() {
        let stat = "12 (a) R) S 1 12 77 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 4242 1000";
        assert_eq!(Process::parse(12, stat), Some(process(12, 1, 77, 4242)));
        assert_eq!(Process::parse(12, "nonsense"), None);
        assert!(Process::parse(12, "12 (a) Z 1 12 77 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 4242 1000").unwrap().dead);
    }

    #[test]
    fn the_session_and_what_descends_from_it_are_claimed() {
        let table =
            [process(10, 1, 10, 100), process(11, 10, 10, 101), process(12, 11, 12, 102), process(30, 1, 30, 9)];
        assert_eq!(of(&[OURS], &table, &[]), [10, 11, 12]);
        // The one in between is gone before the others are looked at.
        let table = [process(11, 10, 10, 101), process(13, 12, 13, 103), process(12, 11, 12, 102)];
        assert_eq!(of(&[OURS], &table, &[]), [11, 12, 13]);
    }

    #[test]
    fn a_daemon_is_known_by_its_mark() {
        let table = [process(40, 1, 40, 120), process(41, 40, 41, 121), process(50, 1, 50, 120)];
        let marks = [(40, 1), (50, 2)];
        assert_eq!(of(&[OURS, THEIRS], &table, &marks), [40, 41]);
    }

    #[test]
    fn a_washed_orphan_is_claimed_only_when_nobody_else_can_have_made_it() {
        let orphan = [process(40, 1, 40, 120)];
        assert_eq!(of(&[OURS], &orphan, &[]), [40]);
        assert!(of(&[OURS, THEIRS], &orphan, &[]).is_empty());
        let later = Claim { since: 130, ..THEIRS };
        assert_eq!(of(&[OURS, later], &orphan, &[]), [40]);
        // What was there before the command is not the command's.
        assert!(of(&[OURS], &[process(40, 1, 40, 99)], &[]).is_empty());
        // Nor is another command, whatever it calls itself.
        assert!(of(&[OURS, later], &[process(20, 1, 20, 131)], &[(20, 1)]).is_empty());
    }

    #[test]
    fn a_circle_in_the_table_ends() {
        let table = [process(60, 61, 60, 1), process(61, 60, 61, 1)];
        assert!(of(&[OURS], &table, &[]).is_empty());
    }
}
