//! `orchestra audit`: the audit's rows, and the record that proves them.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use orchestra_events::Position;
use orchestra_events::audit::checkpoint::{Checkpoint, PublicKey, Statement};
use orchestra_events::audit::export::{Header, MAX_FURTHER, Owed, Trailer, write_event};
use orchestra_events::audit::hex::Hex;
use orchestra_events::audit::{Report, SigningKey, Trust, verify};
use orchestra_events::store::sqlite::offline::Snapshot;
use orchestra_runtime::server_key::ServerKey;
use serde_json::{Value, json};

use super::tasks::{query, text};
use super::{ConfigArguments, ServerArguments, say};
use crate::wiring::CHECKPOINTS;

/// Rows that an export reads at a time.
const PAGE: usize = 512;
/// Checkpoint files of a data folder that are looked at: the newest.
const MAX_FILES: usize = 4_096;
/// Largest checkpoint file, in bytes.
const MAX_CHECKPOINT: u64 = 16 * 1024;

/// Who did what, and the proof of it
#[derive(Subcommand)]
pub enum Audit {
    /// The newest tasks, acts and refused acts
    List {
        #[command(flatten)]
        server: ServerArguments,
        /// Only those of this team
        #[arg(long)]
        team: Option<String>,
        /// Only those of this key or person
        #[arg(long)]
        actor: Option<String>,
        /// Only those on this repository
        #[arg(long)]
        repo: Option<String>,
        /// Only those of this kind: `task`, `key-issued`, `access-denied` …
        #[arg(long)]
        kind: Option<String>,
        /// Only those that ended so: a task's status, `done`, the code of a refusal
        #[arg(long)]
        outcome: Option<String>,
        /// Only what concerns this task
        #[arg(long)]
        task: Option<String>,
        /// Not before this time or day
        #[arg(long)]
        from: Option<String>,
        /// Before this time, or up to this day
        #[arg(long)]
        to: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// All of them, as CSV
        #[arg(long)]
        csv: bool,
    },
    /// The whole log in a file that verifies anywhere
    Export {
        #[command(flatten)]
        config: ConfigArguments,
        /// Where to write it; with the ending .zst it is compressed
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Leave the words out that may be erased: prompts, messages, outputs. Their seals stay
        #[arg(long)]
        without_content: bool,
        /// From a server, and not from the data folder of this machine
        #[arg(long)]
        online: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Recompute every hash, check every signature, reconcile the money; needs no server
    Verify {
        /// An export; without it the data folder itself is verified
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigArguments,
        /// A public key that may have signed, from `GET /v1/audit/key`; may be given several times
        #[arg(long, value_name = "KEY")]
        public_key: Vec<PublicKey>,
        /// A checkpoint that was kept elsewhere; may be given several times
        #[arg(long, value_name = "FILE")]
        checkpoint: Vec<PathBuf>,
    },
    /// Sign the log as it is now, and print the checkpoint
    Checkpoint {
        #[command(flatten)]
        server: ServerArguments,
    },
}

impl Audit {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { server, team, actor, repo, kind, outcome, task, from, to, limit, csv } => {
                let client = server.client()?;
                let mut pairs = vec![
                    ("team", team),
                    ("actor", actor),
                    ("repo", repo),
                    ("kind", kind),
                    ("outcome", outcome),
                    ("task", task),
                    ("from", from),
                    ("to", to),
                ];
                if csv {
                    pairs.push(("format", Some("csv".to_owned())));
                    let path = format!("/v1/audit?{}", query(&pairs));
                    client.download(&path, &mut std::io::stdout().lock()).await?;
                    return Ok(ExitCode::SUCCESS);
                }
                let rows = rows(&client, pairs, limit).await?;
                say(table(&rows).to_string());
                Ok(ExitCode::SUCCESS)
            }
            Self::Export { config, out, without_content, online, server } => {
                let mut file = create(&out)?;
                let last = if online {
                    server
                        .client()?
                        .download(&format!("/v1/audit/export?content={}", !without_content), &mut file)
                        .await?;
                    None
                } else {
                    let data = config.load(Vec::new())?.config.data_dir;
                    Some(export(&data, !without_content, &mut file)?)
                };
                file.finish()?;
                match last {
                    Some(checkpoint) => say(format!(
                        "{} events up to position {0}, signed by {}",
                        checkpoint.position, checkpoint.key_id
                    )),
                    None => say(format!("written to {}", out.display())),
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::Verify { file, config, public_key, checkpoint } => {
                let mut trust = Trust { keys: public_key, checkpoints: Vec::new() };
                for file in &checkpoint {
                    trust.checkpoints.push(read_checkpoint(file)?);
                }
                let pinned = !trust.keys.is_empty() || !trust.checkpoints.is_empty();
                let report = match &file {
                    Some(file) => verify::export(open(file)?, &trust)?,
                    None => {
                        let data = config.load(Vec::new())?.config.data_dir;
                        trust.checkpoints.extend(kept(&data)?);
                        verify::database(&data.join("events.db"), &trust)?
                    }
                };
                Ok(tell(&report, pinned, file.is_some()))
            }
            Self::Checkpoint { server } => {
                let checkpoint = server.client()?.post("/v1/audit/checkpoints", &json!({})).await?;
                say(serde_json::to_string(&checkpoint)?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// So many rows, page by page.
async fn rows(
    client: &crate::client::Client,
    mut pairs: Vec<(&'static str, Option<String>)>,
    limit: u32,
) -> anyhow::Result<Vec<Value>> {
    let limit = limit as usize;
    let mut rows: Vec<Value> = Vec::new();
    pairs.push(("limit", None));
    pairs.push(("cursor", None));
    while rows.len() < limit {
        let end = pairs.len();
        pairs[end - 2].1 = Some((limit - rows.len()).clamp(1, 200).to_string());
        let page = client.get(&format!("/v1/audit?{}", query(&pairs))).await?;
        rows.extend(page["data"].as_array().into_iter().flatten().cloned());
        let Some(next) = page["nextCursor"].as_str() else { break };
        pairs[end - 1].1 = Some(next.to_owned());
    }
    Ok(rows)
}

fn table(rows: &[Value]) -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["TIME", "WHO", "WHAT", "TEAM", "ABOUT", "OUTCOME", "COST"]);
    for row in rows {
        let who = match text(row, "/actor/name") {
            "-" => text(row, "/actor/id"),
            name => name,
        };
        let about = match (text(row, "/about"), text(row, "/repos/0")) {
            ("-", repo) => repo,
            (about, _) => about,
        };
        let cost = row.pointer("/usage/costUsd").map_or_else(|| "-".to_owned(), |cost| format!("${cost}"));
        let columns = [text(row, "/time"), who, text(row, "/kind"), text(row, "/team"), about, text(row, "/outcome")];
        table.add_row(columns.into_iter().chain([&*cost]));
    }
    table
}

/// A file that may be compressed.
enum Sink {
    Plain(BufWriter<File>),
    Packed(Box<zstd::Encoder<'static, BufWriter<File>>>),
}

fn create(path: &Path) -> anyhow::Result<Sink> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let file = BufWriter::with_capacity(1 << 20, file);
    Ok(if path.extension().is_some_and(|extension| extension == "zst") {
        Sink::Packed(Box::new(zstd::Encoder::new(file, 0)?))
    } else {
        Sink::Plain(file)
    })
}

impl Sink {
    fn finish(self) -> anyhow::Result<()> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Packed(encoder) => encoder.finish()?,
        };
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Packed(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Packed(encoder) => encoder.flush(),
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(if path.extension().is_some_and(|extension| extension == "zst") {
        Box::new(BufReader::with_capacity(1 << 20, zstd::Decoder::new(file)?))
    } else {
        Box::new(BufReader::with_capacity(1 << 20, file))
    })
}

/// Writes the log of a data folder, beside a server that may have it open, and signs its end.
fn export(data: &Path, content: bool, out: &mut impl Write) -> anyhow::Result<Checkpoint> {
    if !ServerKey::is_in(data) {
        bail!("{} has no server key to sign with: export from the server with --online", data.display());
    }
    let key: SigningKey = ServerKey::open(data)?.checkpoint_key();
    let mut snapshot = Snapshot::open(&data.join("events.db"))?;
    let mut head = snapshot.head()?;
    let (mut owed, mut further) = (Owed::default(), 0);
    let mut at = Position::START;
    let mut log = None;
    let mut link = None;
    let mut lines = Vec::new();
    while at < head {
        let rows = snapshot.rows(at, head, PAGE)?;
        let Some(last) = rows.last() else { break };
        at = Position(last.position);
        lines.clear();
        for row in &rows {
            let position = row.position;
            let mut linked = row.linked().with_context(|| {
                format!("the event at position {position} does not read; `orchestra audit verify` says more")
            })?;
            owed.met(&linked.event.stream, &linked.event.kind, linked.seal.is_some() && linked.private.is_none());
            if !content {
                linked.private = None;
            }
            link = Some(linked.links.global);
            if log.is_none() {
                log = Some(linked.links.global);
                out.write_all(&Header::new(linked.links.global, public(&key)).line())?;
            }
            write_event(&mut lines, &linked);
        }
        out.write_all(&lines)?;
        // What was erased meanwhile has its erasure behind the end that the log had when this began.
        if at >= head && content && owed.is_any() && further < MAX_FURTHER {
            further += 1;
            head = snapshot.head()?;
        }
    }
    let (Some(log), Some(link)) = (log, link) else { bail!("the log is empty") };
    let checkpoint = Statement { log, position: at, link, time: Timestamp::now() }.sign(&key);
    out.write_all(&Trailer { checkpoint }.line())?;
    Ok(checkpoint)
}

fn public(key: &SigningKey) -> PublicKey {
    Hex(key.verifying_key().to_bytes())
}

fn read_checkpoint(path: &Path) -> anyhow::Result<Checkpoint> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(MAX_CHECKPOINT).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no checkpoint", path.display()))
}

/// The checkpoints that a server has kept beside its log.
fn kept(data: &Path) -> anyhow::Result<Vec<Checkpoint>> {
    let folder = data.join(CHECKPOINTS);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files.iter().rev().take(MAX_FILES).map(|file| read_checkpoint(file)).collect()
}

/// Says what was found. 0: all is as it was appended; 1: it is not.
fn tell(report: &Report, pinned: bool, is_export: bool) -> ExitCode {
    let found = &report.found;
    if let Some(log) = report.log {
        say(format!("log {log}"));
    }
    say(format!("{} events verified, up to position {}, link {}", found.events, report.position, report.link));
    let keys: Vec<_> = found.keys.iter().map(ToString::to_string).collect();
    let by = if keys.is_empty() { "nobody".to_owned() } else { keys.join(", ") };
    let signed =
        format!("{} checkpoints in the log and {} from elsewhere agree; signed by {by}", found.signed, found.given);
    say(signed);
    if found.words + found.words_gone > 0 {
        say(format!("{} events have the words that were sealed, of {} they are gone", found.words, found.words_gone));
    }
    if found.not_checked > 0 {
        say(format!("{} checkpoints look too far back and were not compared", found.not_checked));
    }
    if let Some(end) = &found.end {
        say(format!("the end was signed at {}", end.time));
    }
    match &report.books {
        Ok(balance) if report.broken.is_none() => say(format!(
            "the money adds up: {} ledgers, {} calls of {} tasks, ${} and {} tokens settled, ${} given back; \
             {} unconfirmed, {} under way",
            balance.ledgers,
            balance.calls,
            balance.tasks,
            balance.settled.nano_usd,
            balance.settled.tokens,
            balance.refunded,
            balance.unconfirmed,
            balance.under_way
        )),
        Ok(_) => {}
        Err(mismatch) => say(format!("THE MONEY DOES NOT ADD UP: {mismatch}")),
    }
    if let Some(broken) = &report.broken {
        say(format!("BROKEN: {broken}"));
    }
    if !pinned {
        say(
            "No public key and no checkpoint from elsewhere was given: who holds the server's machine can have written all \
             of this anew. Give --public-key or --checkpoint to exclude that.",
        );
    }
    if !is_export && found.given == 0 {
        say("That nothing is missing at the end of a database only a checkpoint from elsewhere shows.");
    }
    if report.holds() {
        say("OK");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
