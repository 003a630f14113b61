//! Verifies a whole log, from an export or from the database's own file: chain, signatures, money.

use std::io::{self, BufRead, Read as _};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use super::books::{Balance, Books, Mismatch};
use super::chain::{Break, Chain, Found, Trust};
use super::export::{Header, MAX_FURTHER, MAX_LINE, Owed};
use super::parallel::in_order;
use super::read::{self, Entry, Fact, Item};
use crate::envelope::Position;
use crate::store::StoreError;
use crate::store::chain::Digest;
use crate::store::sqlite::offline::{Row, Snapshot};

/// Bytes that are read and worked on at a time.
pub const CHUNK: usize = 256 * 1024;
/// Rows that are read and worked on at a time.
pub const ROWS: usize = 512;
/// Events about money that are handed to the books at a time.
const BOOKED: usize = 256;
/// Such hands that may wait.
const BOOK_QUEUE: usize = 16;

/// Why a log could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file does not read.
    #[error("reading the export: {0}")]
    File(#[from] io::Error),
    /// The database does not read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Which log.
    pub log: Option<Digest>,
    /// The last position that verified.
    pub position: u64,
    /// Its link.
    pub link: Digest,
    /// What was seen on the way.
    pub found: Found,
    /// The first place where the log is not what was appended.
    pub broken: Option<Break>,
    /// What the money adds up to, or the first place where it does not. Only as far as the chain held.
    pub books: Result<Balance, Mismatch>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn holds(&self) -> bool {
        self.broken.is_none() && self.books.is_ok()
    }

    fn broken_at_once(broken: Break) -> Self {
        Self {
            log: None,
            position: 0,
            link: Digest::GENESIS,
            found: Found::default(),
            broken: Some(broken),
            books: Ok(Balance::default()),
        }
    }
}

/// Verifies an export.
///
/// # Errors
/// When it does not read. What does not verify is in the report.
pub fn export(mut file: impl BufRead + Send, trust: &Trust) -> Result<Report, VerifyError> {
    let mut first = Vec::new();
    (&mut file).take(MAX_LINE as u64).read_until(b'\n', &mut first)?;
    let header = first.strip_suffix(b"\n").and_then(Header::read);
    let chain = match Chain::with_header(trust, header) {
        Ok(chain) => chain,
        Err(broken) => return Ok(Report::broken_at_once(broken)),
    };
    let chunk = move || next_chunk(&mut file);
    let work = |chunk: Vec<u8>| {
        let mut scratch = Vec::with_capacity(4 * 1024);
        chunk.split_inclusive(|byte| *byte == b'\n').map(|line| read::line(line, &mut scratch)).collect()
    };
    Ok(in_order(chunk, work, |items| finish(chain, items))?)
}

/// Whole lines; an unfinished one only at the end of the file, or where none can be so long.
fn next_chunk(file: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = Vec::with_capacity(CHUNK + 4 * 1024);
    (&mut *file).take(CHUNK as u64).read_to_end(&mut chunk)?;
    if !chunk.is_empty() && !chunk.ends_with(b"\n") {
        file.take(MAX_LINE as u64).read_until(b'\n', &mut chunk)?;
    }
    Ok((!chunk.is_empty()).then_some(chunk))
}

/// Verifies a log's own file, beside whoever has it open.
///
/// That nothing is missing at its end only a checkpoint from elsewhere can show.
///
/// # Errors
/// When it does not read. What does not verify is in the report.
pub fn database(path: &Path, trust: &Trust) -> Result<Report, VerifyError> {
    let chain = match Chain::new(trust) {
        Ok(chain) => chain,
        Err(broken) => return Ok(Report::broken_at_once(broken)),
    };
    let mut snapshot = Snapshot::open(path)?;
    let mut head = snapshot.head()?;
    let (mut after, mut owed, mut further) = (Position::START, Owed::default(), 0);
    let rows = move || {
        let mut rows = snapshot.rows(after, head, ROWS)?;
        while rows.is_empty() && owed.is_any() && further < MAX_FURTHER {
            further += 1;
            head = snapshot.head()?;
            rows = snapshot.rows(after, head, ROWS)?;
        }
        for row in &rows {
            if let Some(stream) = &row.stream {
                owed.met(stream, &row.kind, row.seal().is_some() && row.private().is_none());
            }
        }
        after = rows.last().map_or(head, |row| Position(row.position));
        Ok::<_, StoreError>((!rows.is_empty()).then_some(rows))
    };
    let work = |rows: Vec<Row>| rows.iter().map(read::row).collect();
    Ok(in_order(rows, work, |items| finish(chain, items))?)
}

/// The chain in this thread, the books in another.
fn finish(mut chain: Chain, items: &mut dyn Iterator<Item = Item>) -> Report {
    let (to_books, entries) = sync_channel::<Vec<Box<Entry>>>(BOOK_QUEUE);
    let (broken, books) = std::thread::scope(|scope| {
        let books = scope.spawn(move || {
            let mut books = Books::default();
            let mut wrong = None;
            for entry in entries.into_iter().flatten() {
                // What comes after the first mismatch is taken and not looked at, so that nobody waits for room.
                if wrong.is_none() {
                    wrong = books.take(&entry).err();
                }
            }
            match wrong {
                Some(wrong) => Err(wrong),
                None => books.finish(),
            }
        });
        let mut waiting = Vec::with_capacity(BOOKED);
        let mut each = |entry: Box<Entry>| {
            if matches!(entry.fact, Fact::None | Fact::Erased | Fact::Checkpoint(_)) {
                return;
            }
            waiting.push(entry);
            if waiting.len() == BOOKED {
                // The books end only after this channel.
                let _ = to_books.send(std::mem::replace(&mut waiting, Vec::with_capacity(BOOKED)));
            }
        };
        let broken = chain.walk(items, &mut each).err();
        let _ = to_books.send(waiting);
        drop(to_books);
        let books = books.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (broken, books)
    });
    let (position, link) = chain.head();
    // Of a log that does not hold, the end is not known: what is missing there is no mismatch.
    let books = if broken.is_some() { books.or_else(|_| Ok(Balance::default())) } else { books };
    Report { log: chain.log(), position, link, found: chain.found, broken, books }
}
