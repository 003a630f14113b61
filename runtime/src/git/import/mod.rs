//! Takes the agent's work out of a sandbox: a stream of bytes nobody trusts, indexed and checked in a child process.

mod child;
mod confine;
mod content;
pub(super) mod history;
mod lfs;
mod names;
mod rules;
mod secret_rules;
mod secrets;
mod twins;
mod walk;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orchestra_events::CommitId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

pub use child::import_main;
pub use rules::{History, ImportLimits, ImportRules, InvalidGlob, NameRules, PROTECTED_FILES, SecretRules};
pub use secrets::redact_secrets;

use super::Imported;
use super::error::{ExportFault, GitError, Operation, PackFault};

/// The first argument by which the program knows that it is the importing child.
pub const IMPORT_ARG: &str = "__import-pack";

/// The longest first line of an export: `tip ` and 64 digits, or a reason.
const MAX_HEADER_BYTES: usize = 80;
/// The child's answer is one small JSON object; a path in it is shortened.
const MAX_REPORT_BYTES: u64 = 16 * 1024;
/// Rules and paths for the child: Linux takes no argument above 128 KiB.
const MAX_ORDER_BYTES: usize = 120 * 1024;
/// How much is read from the sandbox at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What the child is told, as its one argument.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    repo: PathBuf,
    quarantine: PathBuf,
    base: CommitId,
    tip: CommitId,
    rules: ImportRules,
}

/// What the child answers on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    Accepted { tree: CommitId, files_changed: u32, pack: String },
    Unchanged,
    Rejected { fault: PackFault, detail: String },
    Failed { detail: String },
}

fn rejected(fault: PackFault, detail: impl Into<String>) -> GitError {
    GitError::PackRejected { fault, detail: detail.into() }
}

/// The directory the pack is indexed in; nothing reads from it but the child, and it goes with this value.
struct Quarantine(PathBuf);

impl Quarantine {
    fn new(repo: &Path) -> Result<Self, GitError> {
        let disk = |error: std::io::Error| GitError::io(Operation::Import, "making the quarantine", &error);
        let path = repo.join("quarantine").join(uuid::Uuid::now_v7().simple().to_string());
        std::fs::create_dir_all(path.join("pack")).map_err(disk)?;
        Ok(Self(path))
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Empty unless another import runs; what a killed process left is small beside its repository's own end.
        let _ = self.0.parent().map(std::fs::remove_dir);
    }
}

/// What the sandbox announced.
enum Header {
    Unchanged,
    Tip(CommitId),
}

async fn header(pack: &mut (impl AsyncRead + Send + Unpin)) -> Result<Header, GitError> {
    let no_answer = || GitError::ExportFailed { fault: ExportFault::NoAnswer };
    let mut line = Vec::with_capacity(MAX_HEADER_BYTES);
    loop {
        let byte = pack.read_u8().await.map_err(|_| no_answer())?;
        match byte {
            b'\n' => break,
            _ if line.len() == MAX_HEADER_BYTES => return Err(no_answer()),
            _ => line.push(byte),
        }
    }
    let line = String::from_utf8(line).map_err(|_| no_answer())?;
    match line.as_str() {
        "unchanged" => Ok(Header::Unchanged),
        "failed history-gone" => Err(GitError::ExportFailed { fault: ExportFault::HistoryGone }),
        "failed disk-full" => Err(GitError::ExportFailed { fault: ExportFault::DiskFull }),
        "failed unreadable" => Err(GitError::ExportFailed { fault: ExportFault::Unreadable }),
        _ => {
            let tip = line.strip_prefix("tip ").and_then(|oid| CommitId::try_from(oid.to_owned()).ok());
            tip.map(Header::Tip).ok_or_else(no_answer)
        }
    }
}

pub(super) async fn run(
    helper: &Path,
    repo: &Path,
    base: &CommitId,
    rules: &ImportRules,
    deadline: Duration,
    mut pack: impl AsyncRead + Send + Unpin,
) -> Result<Option<Imported>, GitError> {
    let work = async {
        match header(&mut pack).await? {
            Header::Unchanged => Ok(None),
            Header::Tip(tip) => admit(helper, repo, base, tip, rules, pack).await,
        }
    };
    tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| GitError::DeadlineExceeded { operation: Operation::Import, limit: deadline })?
}

async fn admit(
    helper: &Path,
    repo: &Path,
    base: &CommitId,
    tip: CommitId,
    rules: &ImportRules,
    pack: impl AsyncRead + Send + Unpin,
) -> Result<Option<Imported>, GitError> {
    let quarantine = Quarantine::new(repo)?;
    let order = order(&quarantine, repo, base, tip, rules);
    let report = ask_child(helper, &order, pack).await?;
    conclude(report, order)
}

fn order(quarantine: &Quarantine, repo: &Path, base: &CommitId, tip: CommitId, rules: &ImportRules) -> Order {
    Order { repo: repo.to_path_buf(), quarantine: quarantine.0.clone(), base: base.clone(), tip, rules: rules.clone() }
}

/// Lets in what passed.
fn conclude(report: Report, order: Order) -> Result<Option<Imported>, GitError> {
    match report {
        Report::Unchanged => Ok(None),
        Report::Rejected { fault, detail } => Err(rejected(fault, detail)),
        Report::Failed { detail } => Err(GitError::Git { operation: Operation::Import, detail }),
        Report::Accepted { tree, files_changed, pack } => {
            publish(&order.quarantine, &order.repo, &pack)?;
            Ok(Some(Imported { tip: order.tip, tree, files_changed, history: order.rules.history }))
        }
    }
}

/// An import whose checks run in this very process, without the child's confinement: for the fuzz targets, which have to see
/// what the checks do.
///
/// # Errors
/// As [`super::Git::import`], but for the limits that the kernel keeps on the child.
#[cfg(feature = "fuzzing")]
pub fn import_here(
    repo: &Path,
    base: &CommitId,
    rules: &ImportRules,
    mut export: &[u8],
) -> Result<Option<Imported>, GitError> {
    use futures_util::FutureExt as _;

    super::init_process();
    let header = header(&mut export).now_or_never().expect("bytes in memory are there at once")?;
    let Header::Tip(tip) = header else { return Ok(None) };
    let quarantine = Quarantine::new(repo)?;
    let order = order(&quarantine, repo, base, tip, rules);
    conclude(child::check(&order, &mut export), order)
}

async fn ask_child(helper: &Path, order: &Order, pack: impl AsyncRead + Send + Unpin) -> Result<Report, GitError> {
    let start = |error: std::io::Error| GitError::io(Operation::Import, "starting the importing process", &error);
    let unusable = |detail: &str| GitError::Io { operation: Operation::Import, detail: detail.to_owned() };
    let argument = serde_json::to_string(order).map_err(|_| unusable("a path that is not UTF-8"))?;
    if argument.len() > MAX_ORDER_BYTES {
        return Err(unusable("the import's rules are too long; use fewer patterns"));
    }
    let mut child = Command::new(helper)
        .arg(IMPORT_ARG)
        .arg(argument)
        .env_clear()
        .current_dir(&order.quarantine)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let feed = async move {
        let fed = feed(pack, &mut stdin, order.rules.limits.pack_bytes).await;
        drop(stdin);
        fed
    };
    let listen = async {
        let mut report = Vec::new();
        stdout.take(MAX_REPORT_BYTES).read_to_end(&mut report).await.map(|_| report)
    };
    // The child may refuse early: then its answer ends the feeding, however much the sandbox still wants to say.
    tokio::pin!(feed);
    tokio::pin!(listen);
    let report = tokio::select! {
        fed = &mut feed => {
            fed?;
            listen.await
        }
        report = &mut listen => report,
    };
    let status = child.wait().await.map_err(start)?;
    let report = report.ok().and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok());
    match report {
        Some(report) if status.success() => Ok(report),
        _ => {
            use std::os::unix::process::ExitStatusExt;
            let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
            Err(rejected(
                PackFault::LimitReached,
                format!("reading its pack took more memory, time or disk than allowed ({how})"),
            ))
        }
    }
}

async fn feed(
    mut pack: impl AsyncRead + Unpin,
    stdin: &mut tokio::process::ChildStdin,
    limit: u64,
) -> Result<(), GitError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut fed = 0;
    loop {
        let read = match pack.read(&mut chunk).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(read) => read,
        };
        fed += read as u64;
        if fed > limit {
            return Err(rejected(PackFault::TooLarge, format!("the pack is larger than {limit} bytes")));
        }
        // A child that stopped reading has an answer or is dead; either shows next.
        if stdin.write_all(&chunk[..read]).await.is_err() {
            return Ok(());
        }
    }
}

/// Moves the checked pack into the trusted repository. The index goes last: git finds packs by their index.
fn publish(quarantine: &Path, repo: &Path, pack: &str) -> Result<(), GitError> {
    let disk = |error: std::io::Error| GitError::io(Operation::Import, "admitting the pack", &error);
    if pack.is_empty() || !pack.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(GitError::Git {
            operation: Operation::Import,
            detail: "the importing process named no pack".to_owned(),
        });
    }
    let target = repo.join("objects").join("pack");
    std::fs::create_dir_all(&target).map_err(disk)?;
    for extension in ["pack", "idx"] {
        let name = format!("pack-{pack}.{extension}");
        std::fs::rename(quarantine.join("pack").join(&name), target.join(&name)).map_err(disk)?;
    }
    Ok(())
}
