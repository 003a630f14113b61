//! The order of the log: recomputes every link and names the first place that does not hold, and in which way.
//!
//! Places are counted like positions: 0 is the header of an export, 1 the first event, and after the last event comes
//! the place of the export's end. What is named is the first place at which the file differs from what was appended.
//! Where an event was replaced together with its own links, that shows at the next one; where a whole end of the log was
//! written anew with good links, only signatures show it, and what is named is the range between two of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use super::checkpoint::{Checkpoint, PublicKey, SigningKeyId};
use super::export::Header;
use super::read::{Bad, Entry, Fact, Item, Words};
use crate::envelope::StreamName;
use crate::store::chain::{Digest, Links, extend, extend_log};

/// How far around a break is looked to say what kind it is, in events.
pub const WINDOW: usize = 64;
/// How far back a checkpoint in the log may look: the server signs the end of the log as it is, so that a few events
/// come between. What is older is counted, and not checked.
pub const REACH: usize = 65_536;
/// Different keys that are told apart in a report.
pub const MAX_KEYS: usize = 64;

/// In which way the log is not what was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The content, the numbers or the links of an event, or a byte of header or end.
    Altered,
    /// Events are missing in the middle.
    Dropped,
    /// There is something that was never appended here.
    Inserted,
    /// Events stand in another order.
    Reordered,
    /// The end is missing.
    Truncated,
    /// A whole range was written anew, with good links that no key has signed.
    Rewritten,
    /// A signature is by another key than the one that is trusted.
    OtherKey,
    /// A signature is not the named key's.
    BadSignature,
    /// Words are gone of which the log does not say that they were erased.
    Stripped,
}

impl Kind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Dropped => "dropped",
            Self::Inserted => "inserted",
            Self::Reordered => "reordered",
            Self::Truncated => "truncated",
            Self::Rewritten => "rewritten",
            Self::OtherKey => "signed by another key",
            Self::BadSignature => "bad signature",
            Self::Stripped => "words are gone",
        }
    }
}

/// The first place at which the log is not what was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// In which way.
    pub kind: Kind,
    /// The first place that it can be.
    pub from: u64,
    /// The last place that it can be; nearly always the same.
    pub to: u64,
    /// The stream and the revision that the event there claims, if one reads.
    pub event: Option<(StreamName, u64)>,
    /// Up to here a signature vouches for the log as it is. Where it is a signature that does not hold, anything after
    /// this may have been written anew.
    pub vouched: u64,
    /// In a sentence.
    pub detail: String,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.as_str())?;
        match (self.from, self.to) {
            (0, 0) => f.write_str("the header")?,
            (from, to) if from == to => write!(f, "position {to}")?,
            (from, to) => write!(f, "somewhere in positions {from} to {to}")?,
        }
        if let Some((stream, revision)) = &self.event {
            write!(f, " ({stream}, revision {revision})")?;
        }
        write!(f, ": {}", self.detail)?;
        match self.kind {
            Kind::OtherKey | Kind::BadSignature => {
                write!(f, "; what is signed by the trusted key ends at position {}", self.vouched)
            }
            Kind::Altered
            | Kind::Dropped
            | Kind::Inserted
            | Kind::Reordered
            | Kind::Truncated
            | Kind::Rewritten
            | Kind::Stripped => Ok(()),
        }
    }
}

/// What is known from outside: kept where whoever can change the log cannot.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The keys that may have signed. Empty: none is known.
    pub keys: Vec<PublicKey>,
    /// Checkpoints from elsewhere.
    pub checkpoints: Vec<Checkpoint>,
}

impl Trust {
    /// Every key that is trusted: those that were named, else those of the checkpoints that were given.
    fn all(&self) -> Vec<PublicKey> {
        if !self.keys.is_empty() {
            return self.keys.clone();
        }
        let mut keys: Vec<_> = self.checkpoints.iter().map(|given| given.public_key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// What stood before an event.
struct Undo {
    stream: StreamName,
    before: Option<(u64, Digest)>,
    global: Digest,
    body: Digest,
}

/// Walks a log in the order of the file.
pub struct Chain {
    trusted: Vec<PublicKey>,
    header: Option<Header>,
    position: u64,
    global: Digest,
    log: Option<Digest>,
    streams: HashMap<StreamName, (u64, Digest)>,
    undo: VecDeque<Undo>,
    /// The newest links, the one of `position` last.
    recent: VecDeque<Digest>,
    given: BTreeMap<u64, Vec<Checkpoint>>,
    /// Of each stream, the first event whose words are gone and for which no erasure was met yet: position and revision.
    /// An erasure stands in the log behind what it erases.
    gone: HashMap<StreamName, (u64, u64)>,
    /// Up to here a signature vouches for the log.
    vouched: u64,
    /// What was found.
    pub found: Found,
}

/// What a walk has found so far.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Events that verified.
    pub events: u64,
    /// Of these, those with the words that were sealed.
    pub words: u64,
    /// Those whose words were erased, or left out of the export.
    pub words_gone: u64,
    /// Checkpoints in the log that verified.
    pub signed: u64,
    /// Checkpoints from outside that verified.
    pub given: u64,
    /// Checkpoints in the log that look further back than [`REACH`].
    pub not_checked: u64,
    /// The keys that have signed, in the order in which they appear.
    pub keys: Vec<SigningKeyId>,
    /// The signed end, where there is one.
    pub end: Option<Checkpoint>,
}

impl Chain {
    /// A walk over a log without a header.
    pub fn new(trust: &Trust) -> Result<Self, Break> {
        let mut given: BTreeMap<u64, Vec<Checkpoint>> = BTreeMap::new();
        let trusted = trust.all();
        for checkpoint in &trust.checkpoints {
            let place = checkpoint.position;
            if checkpoint.verify().is_err() {
                return Err(broken(
                    Kind::BadSignature,
                    place,
                    "the signature of a checkpoint that was given is not its key's",
                ));
            }
            if !trusted.contains(&checkpoint.public_key) {
                let detail = format!("a checkpoint that was given is signed by {}", checkpoint.key_id);
                return Err(broken(Kind::OtherKey, place, detail));
            }
            given.entry(place).or_default().push(*checkpoint);
        }
        Ok(Self {
            trusted,
            header: None,
            position: 0,
            global: Digest::GENESIS,
            log: None,
            streams: HashMap::new(),
            undo: VecDeque::with_capacity(WINDOW),
            recent: VecDeque::new(),
            given,
            gone: HashMap::new(),
            vouched: 0,
            found: Found::default(),
        })
    }

    /// The same over an export with this header.
    pub fn with_header(trust: &Trust, header: Option<Header>) -> Result<Self, Break> {
        let mut chain = Self::new(trust)?;
        let Some(header) = header else {
            return Err(broken(
                Kind::Altered,
                0,
                "the first line is not the header of an export, or not spelled as one",
            ));
        };
        if !chain.trusted.is_empty() && !chain.trusted.contains(&header.public_key) {
            let detail = format!("the export names the key {}, which is not the one that is trusted", header.key_id);
            return Err(broken(Kind::OtherKey, 0, detail));
        }
        chain.header = Some(header);
        Ok(chain)
    }

    /// The last position that verified, and its link.
    pub fn head(&self) -> (u64, Digest) {
        (self.position, self.global)
    }

    /// Which log it is, once an event was read.
    pub fn log(&self) -> Option<Digest> {
        self.log
    }

    /// Walks to the end or to the first break. `each` is told of every event that verified.
    pub fn walk(
        &mut self,
        items: &mut dyn Iterator<Item = Item>,
        each: &mut dyn FnMut(Box<Entry>),
    ) -> Result<(), Break> {
        self.steps(items, each).map_err(|broken| Break { vouched: self.vouched, ..broken })
    }

    fn steps(&mut self, items: &mut dyn Iterator<Item = Item>, each: &mut dyn FnMut(Box<Entry>)) -> Result<(), Break> {
        while let Some(item) = items.next() {
            match item {
                Item::Event(entry) if self.follows(&entry) => {
                    match entry.words {
                        Words::None => {}
                        Words::Fit => self.found.words += 1,
                        Words::Gone => {
                            self.found.words_gone += 1;
                            let first = (entry.position, entry.revision);
                            self.gone.entry(entry.stream.clone()).or_insert(first);
                        }
                        Words::Wrong => {
                            let event = Some((entry.stream.clone(), entry.revision));
                            let detail = "its words are not those that were sealed";
                            return Err(Break { event, ..broken(Kind::Altered, entry.position, detail) });
                        }
                    }
                    self.accept(&entry)?;
                    each(entry);
                }
                Item::Trailer(end) => {
                    self.end(&end)?;
                    return match items.next() {
                        None => Ok(()),
                        Some(_) => {
                            Err(broken(Kind::Inserted, self.position + 2, "something stands after the signed end"))
                        }
                    };
                }
                wrong @ (Item::Event(_) | Item::Bad(_)) => {
                    let ahead: Vec<Item> = items.take(WINDOW).collect();
                    return Err(self.classify(&wrong, &ahead));
                }
            }
        }
        if self.header.is_some() {
            let detail = "the file ends without a signed end";
            return Err(broken(Kind::Truncated, self.position + 1, detail));
        }
        self.over()
    }

    /// The links that an event with this body has after what was read.
    fn due(&self, entry: &Entry) -> (u64, Links) {
        let (revision, previous) = self.streams.get(&entry.stream).copied().unwrap_or((0, Digest::GENESIS));
        (revision, extend(previous, self.global, entry.body))
    }

    fn follows(&self, entry: &Entry) -> bool {
        let (revision, links) = self.due(entry);
        entry.position == self.position + 1 && entry.revision == revision && entry.links == links
    }

    /// The same but for the numbers, which no hash covers.
    fn fits(&self, item: &Item) -> bool {
        match item {
            Item::Event(entry) => self.due(entry).1 == entry.links,
            Item::Trailer(_) | Item::Bad(_) => false,
        }
    }

    fn accept(&mut self, entry: &Entry) -> Result<(), Break> {
        if self.undo.len() == WINDOW {
            self.undo.pop_front();
        }
        let next = (entry.revision + 1, entry.links.stream);
        let before = self.streams.insert(entry.stream.clone(), next);
        self.undo.push_back(Undo { stream: entry.stream.clone(), before, global: self.global, body: entry.body });
        self.position = entry.position;
        self.global = entry.links.global;
        if self.recent.len() == REACH {
            self.recent.pop_front();
        }
        self.recent.push_back(self.global);
        self.found.events += 1;
        if self.log.is_none() {
            self.log = Some(self.global);
        }
        if let Some(given) = self.given.remove(&self.position) {
            for checkpoint in given {
                self.agrees(&checkpoint, self.global, self.position)?;
                self.found.given += 1;
            }
            self.vouched = self.position;
        }
        match &entry.fact {
            Fact::Checkpoint(checkpoint) => self.signed(checkpoint, entry),
            Fact::Erased => {
                self.gone.remove(&entry.stream);
                Ok(())
            }
            Fact::None | Fact::Ledger(_) | Fact::Charged { .. } | Fact::Refunded(_) | Fact::Over(_) | Fact::Odd => {
                Ok(())
            }
        }
    }

    /// Whether the log is at this place what the checkpoint says.
    fn agrees(&self, checkpoint: &Checkpoint, link: Digest, place: u64) -> Result<(), Break> {
        if self.log.map(Into::into) == Some(checkpoint.log_id) && checkpoint.global_link == link.into() {
            return Ok(());
        }
        // A header that names the log that was signed shows that the events are another one's.
        let header_too =
            self.vouched == 0 && self.header.as_ref().is_some_and(|header| header.log_id != checkpoint.log_id);
        Err(Break {
            kind: Kind::Rewritten,
            from: if header_too { 0 } else { self.vouched + 1 },
            to: place,
            event: None,
            vouched: self.vouched,
            detail: format!(
                "the links hold, but a checkpoint that was signed at {} says that the log was another one",
                checkpoint.time
            ),
        })
    }

    fn trusts(&self, checkpoint: &Checkpoint) -> bool {
        match (&self.trusted[..], &self.header) {
            ([], Some(header)) => header.public_key == checkpoint.public_key,
            ([], None) => true,
            (trusted, _) => trusted.contains(&checkpoint.public_key),
        }
    }

    fn by_key(&mut self, checkpoint: &Checkpoint, place: u64) -> Result<(), Break> {
        // A signature that does not hold says nothing, not even whose it is.
        if checkpoint.verify().is_err() {
            return Err(broken(Kind::BadSignature, place, "the signature is not the named key's over this statement"));
        }
        if !self.trusts(checkpoint) {
            let detail = format!(
                "it is signed by the key {}; if the key was changed, name all of them as public keys",
                checkpoint.key_id
            );
            return Err(broken(Kind::OtherKey, place, detail));
        }
        if !self.found.keys.contains(&checkpoint.key_id) && self.found.keys.len() < MAX_KEYS {
            self.found.keys.push(checkpoint.key_id);
        }
        Ok(())
    }

    /// A checkpoint in the log: it speaks of the events before it.
    fn signed(&mut self, checkpoint: &Checkpoint, entry: &Entry) -> Result<(), Break> {
        let named = |broken: Break| Break { event: Some((entry.stream.clone(), entry.revision)), ..broken };
        self.by_key(checkpoint, entry.position).map_err(named)?;
        let back = self.position.checked_sub(checkpoint.position).and_then(|back| usize::try_from(back).ok());
        let link = match back {
            None | Some(0) => None,
            Some(back) => match self.recent.len().checked_sub(back + 1) {
                Some(place) => self.recent.get(place).copied(),
                None => {
                    self.found.not_checked += 1;
                    return Ok(());
                }
            },
        };
        let Some(link) = link else {
            let detail = "the checkpoint speaks of events that come after it";
            return Err(named(broken(Kind::Rewritten, entry.position, detail)));
        };
        self.agrees(checkpoint, link, checkpoint.position)?;
        self.vouched = self.vouched.max(checkpoint.position);
        self.found.signed += 1;
        Ok(())
    }

    /// The signed end of an export.
    fn end(&mut self, end: &Checkpoint) -> Result<(), Break> {
        let place = self.position + 1;
        self.by_key(end, place)?;
        if let Some(header) = &self.header
            && header.public_key != end.public_key
        {
            return Err(broken(Kind::OtherKey, place, "the end is signed by another key than the header names"));
        }
        if end.position > self.position {
            let detail = format!("the log was signed up to position {}, and ends here", end.position);
            return Err(broken(Kind::Truncated, place, detail));
        }
        if end.position < self.position {
            let detail = format!("the log was signed up to position {}, and goes on", end.position);
            return Err(broken(Kind::Inserted, end.position + 1, detail));
        }
        self.agrees(end, self.global, self.position)?;
        // Only now: had the first event been replaced, the header would be right and the end would not agree.
        if self.header.as_ref().is_some_and(|header| header.log_id != end.log_id) {
            return Err(broken(Kind::Altered, 0, "the header belongs to another log"));
        }
        self.found.end = Some(*end);
        self.over()
    }

    /// Whether every checkpoint from outside was met, and the log says of all words that are gone that they were erased.
    fn over(&self) -> Result<(), Break> {
        match self.given.keys().next_back() {
            None => self.all_erased(),
            Some(last) => {
                let detail = format!("a checkpoint that was given is about position {last}, and the log ends here");
                Err(broken(Kind::Truncated, self.position + 1, detail))
            }
        }
    }

    /// Where there are no words at all, they were left out of the whole export, which it may; otherwise each that is
    /// gone was erased, and the log says so.
    fn all_erased(&self) -> Result<(), Break> {
        let first = self.gone.iter().min_by_key(|(_, (position, _))| *position);
        match first {
            Some((stream, (position, revision))) if self.found.words > 0 => {
                let detail = "its words are gone, and nothing in the log says that they were erased";
                let event = Some((stream.clone(), *revision));
                Err(Break { event, ..broken(Kind::Stripped, *position, detail) })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What is wrong at the next place, where `wrong` stands and `ahead` follows.
    fn classify(&self, wrong: &Item, ahead: &[Item]) -> Break {
        let place = self.position + 1;
        let entry = match wrong {
            Item::Event(entry) => Some(entry),
            Item::Bad(_) | Item::Trailer(_) => None,
        };
        let name = |kind, from, to, detail: String| Break {
            kind,
            from,
            to,
            event: entry.map(|entry| (entry.stream.clone(), entry.revision)),
            vouched: self.vouched,
            detail,
        };
        if let Item::Bad(Bad { unfinished: true, why, .. }) = wrong
            && ahead.is_empty()
        {
            return name(Kind::Truncated, place, place, format!("the file ends in the middle: {why}"));
        }
        if self.fits(wrong) {
            let detail = "the content is what was appended, but its position or its revision was changed";
            return name(Kind::Altered, place, place, detail.to_owned());
        }
        if let Some(entry) = entry {
            if self.undo.iter().any(|undo| undo.body == entry.body) {
                return name(Kind::Inserted, place, place, "an event stands here a second time".to_owned());
            }
            if let Some(count) = self.inserted_before(entry) {
                let from = place - count;
                return Break {
                    kind: Kind::Inserted,
                    from,
                    to: from,
                    event: None,
                    vouched: self.vouched,
                    detail: format!("{count} events with links of their own stand before the one that follows"),
                };
            }
        }
        let claimed = match wrong {
            Item::Event(entry) => Some(entry.position),
            Item::Bad(bad) => bad.position,
            Item::Trailer(_) => None,
        };
        if let Some(after) = ahead.iter().position(|item| self.fits(item)) {
            let again = entry.is_some_and(|entry| {
                ahead.iter().any(|item| matches!(item, Item::Event(other) if other.body == entry.body))
            });
            let moved = claimed.is_some_and(|claimed| claimed > place) && !again;
            let count = after + 1;
            return if moved {
                name(Kind::Reordered, place, place, format!("the event that belongs here follows {count} later"))
            } else {
                name(Kind::Inserted, place, place, format!("the event that belongs here follows {count} later"))
            };
        }
        if let Some(claimed) = claimed.filter(|claimed| *claimed > place) {
            let missing = claimed - place;
            let detail = format!("{missing} events are missing, up to position {}", claimed - 1);
            return name(Kind::Dropped, place, place, detail);
        }
        let Some(entry) = entry else {
            let why = match wrong {
                Item::Bad(bad) => bad.why,
                Item::Event(_) | Item::Trailer(_) => "it does not read",
            };
            return name(Kind::Altered, place, place, why.to_owned());
        };
        if claimed.is_some_and(|claimed| claimed < place) {
            return name(Kind::Inserted, place, place, "an event stands here that belongs further up".to_owned());
        }
        // Its own content is proved by its stream's chain, and what follows builds on it: what is wrong is before it.
        let (_, due) = self.due(entry);
        let builds = match ahead.first() {
            Some(Item::Event(next)) => extend_log(entry.links.global, next.links.stream) == next.links.global,
            Some(Item::Trailer(_) | Item::Bad(_)) | None => false,
        };
        if due.stream == entry.links.stream && builds && self.position > self.vouched {
            let detail = "an event before it is missing, or was replaced together with its links";
            return name(Kind::Dropped, self.position, place, detail.to_owned());
        }
        name(Kind::Altered, place, place, "its content or its links are not what was appended".to_owned())
    }

    /// How many of the events before were put in with good links, if this one follows without them.
    fn inserted_before(&self, entry: &Entry) -> Option<u64> {
        let mut streams: HashMap<&StreamName, Digest> = HashMap::new();
        let genesis = |before: Option<(u64, Digest)>| before.map_or(Digest::GENESIS, |(_, link)| link);
        for (count, undo) in self.undo.iter().rev().enumerate() {
            streams.insert(&undo.stream, genesis(undo.before));
            let previous = streams
                .get(&entry.stream)
                .copied()
                .unwrap_or_else(|| genesis(self.streams.get(&entry.stream).copied()));
            if extend(previous, undo.global, entry.body) == entry.links {
                return Some(count as u64 + 1);
            }
        }
        None
    }
}

fn broken(kind: Kind, place: u64, detail: impl Into<String>) -> Break {
    Break { kind, from: place, to: place, event: None, vouched: 0, detail: detail.into() }
}
