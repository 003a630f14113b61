//! What only a store on a disk can promise.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::store::chain::{Break, Verifier};
use crate::store::conformance::{self, event, stream};
use crate::store::read_whole_stream;
use crate::subscription::{Delivery, Subscription};

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("events.db")
}

fn open(folder: &TempDir) -> SqliteStore {
    SqliteStore::open(path(folder)).unwrap()
}

/// Walks the whole chain; gives the number of events.
async fn verify(store: &SqliteStore) -> Result<u64, Break> {
    let mut verifier = Verifier::default();
    loop {
        let page = store.read_links(verifier.head().0, MAX_PAGE).await.unwrap();
        if page.is_empty() {
            assert_eq!(verifier.head().0, store.head().await.unwrap());
            return Ok(verifier.head().0.0);
        }
        page.iter().try_for_each(|linked| verifier.check(linked))?;
    }
}

fn mark(folder: &TempDir) -> u64 {
    let conn = Connection::open(path(folder)).unwrap();
    conn.query_row("SELECT position FROM stream_index_mark", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms() {
    let folders = Mutex::new(Vec::new());
    conformance::run(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        folders.lock().unwrap().push(folder);
        Arc::new(store) as Arc<dyn EventStore>
    })
    .await;
}

#[tokio::test]
async fn a_second_server_is_refused_until_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(&folder);
    let refused = SqliteStore::open(path(&folder)).err().expect("two servers on one log").to_string();
    assert!(refused.contains("in use by another server"), "{refused}");
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    drop(first);
    open(&folder);
}

/// A server that is killed can leave a child behind that has its files open for a moment more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_of_a_server_that_has_died_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder));
    let lock = PathBuf::from(format!("{}.lock", path(&folder).display()));
    // No process has a number as high as this.
    std::fs::write(&lock, format!("{}\n", u32::MAX)).unwrap();
    let child = File::open(&lock).unwrap();
    child.lock().unwrap();
    let goes = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(child);
    });
    open(&folder);
    goes.await.unwrap();
}

/// The index lags, so each part of a stream is read from another place: index, tail on disk, memory.
#[tokio::test(flavor = "multi_thread")]
async fn streams_are_whole_whatever_the_index_holds() {
    const STREAMS: usize = 7;
    let folder = tempfile::tempdir().unwrap();
    let mut lengths = [0u64; STREAMS];
    // Three openings, each of which adds more than one index run and leaves a tail that is longer than the ring.
    for opening in 0..3 {
        let store = open(&folder);
        for number in 0..300usize {
            let chosen = (number * number + opening) % STREAMS;
            let name = stream(&format!("task-{chosen}"));
            let expected =
                lengths[chosen].checked_sub(1).map_or(Expected::NoStream, |last| Expected::Exactly(Revision(last)));
            let batch: Vec<_> = (0..23).map(|_| event("m", "0")).collect();
            lengths[chosen] += batch.len() as u64;
            let appended = store.append(&name, expected, batch).await.unwrap();
            assert_eq!(appended.revision, Revision(lengths[chosen] - 1));
        }
        let head = store.head().await.unwrap();
        let mark = mark(&folder);
        assert!(mark > 0 && mark < head.0, "the index lags: {mark} of {}", head.0);
        for (number, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let name = stream(&format!("task-{number}"));
            let whole = read_whole_stream(&store, &name).await.unwrap();
            assert!(whole.iter().map(|event| event.revision.0).eq(0..*length), "forwards, opening {opening}");
            for from in [length - 1, length / 2, length / 3, 5] {
                let page =
                    store.read_stream(&name, Some(Revision(from)), Direction::Backwards, MAX_PAGE).await.unwrap();
                assert!(page.iter().map(|event| event.revision.0).eq((0..=from).rev().take(MAX_PAGE)), "backwards");
            }
        }
        drop(store);
        let reopened = open(&folder);
        assert_eq!(reopened.head().await.unwrap(), head);
        assert_eq!(verify(&reopened).await, Ok(head.0));
        let newest = reopened.read_all(Position(head.0 - 1), 1).await.unwrap().remove(0);
        let again = NewEvent {
            id: newest.id,
            kind: newest.kind,
            schema: 1,
            time: newest.time,
            actor: newest.actor,
            correlation: None,
            causation: None,
            data: serde_json::from_str(newest.data.get()).unwrap(),
            private: None,
        };
        let repeated = reopened.append(&newest.stream, Expected::Any, vec![again]).await.unwrap();
        assert_eq!(repeated.position, head, "an id is recognised after a restart");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_append_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let limit = async |pages| {
        let (done, wait) = oneshot::channel();
        store.send(Request::LimitPages(pages, done)).unwrap();
        wait.await.unwrap();
    };
    let name = stream("task-1");
    store.append(&name, Expected::NoStream, vec![event("m", "1")]).await.unwrap();
    limit(1).await;
    let large = format!("\"{}\"", "x".repeat(100_000));
    let (new, old) = (stream("task-2"), Expected::Exactly(Revision(0)));
    // The first still fits into the last page: what memory learned of it must be forgotten again.
    let lost = vec![event("m", "1"), event("m", &large)];
    for (name, expected) in [(&name, old), (&new, Expected::NoStream), (&name, old)] {
        let refused = store.append(name, expected, lost.clone()).await;
        assert!(matches!(&refused, Err(StoreError::Failed(why)) if why.contains("full")), "{refused:?}");
    }
    assert_eq!(store.head().await, Ok(Position(1)));
    assert_eq!(read_whole_stream(&store, &name).await.unwrap().len(), 1);
    limit(1_000_000).await;
    let wrong = store.append(&name, Expected::Exactly(Revision(1)), vec![event("m", "2")]).await;
    assert!(matches!(wrong, Err(StoreError::WrongExpectedRevision { actual: Some(Revision(0)), .. })), "{wrong:?}");
    let appended = store.append(&name, old, lost).await.unwrap();
    assert_eq!((appended.revision, appended.position), (Revision(2), Position(3)));
    store.append(&new, Expected::NoStream, vec![event("m", "3")]).await.unwrap();
    assert_eq!(verify(&store).await, Ok(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_says_so_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder));
    // A disk that does not answer: another connection holds the database's write lock.
    let stuck = Connection::open(path(&folder)).unwrap();
    stuck.execute_batch("BEGIN IMMEDIATE").unwrap();
    let attempts = QUEUE + GROUP_EVENTS + 200;
    let mut appends = JoinSet::new();
    for number in 0..attempts {
        let (store, name) = (Arc::clone(&store), stream(&format!("task-{}", number % 50)));
        appends.spawn(async move { store.append(&name, Expected::Any, vec![event("m", "0")]).await });
    }
    let (mut accepted, mut refused) = (0, 0);
    let mut released = false;
    while let Some(result) = appends.join_next().await {
        match result.unwrap() {
            Ok(_) => accepted += 1,
            Err(StoreError::Overloaded) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if refused > 0 && !released {
            stuck.execute_batch("ROLLBACK").unwrap();
            released = true;
        }
    }
    assert!(refused > 0);
    assert_eq!(accepted + refused, attempts);
    assert_eq!(verify(&store).await, Ok(accepted as u64));
}

#[tokio::test]
async fn nobody_waits_for_a_writer_that_died() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<SqliteStore> = Arc::new(open(&folder));
    let name = stream("task-1");
    let mut subscriptions = [
        Subscription::stream(Arc::clone(&store) as _, name.clone(), None),
        Subscription::all(Arc::clone(&store) as _, Position::START, Filter::everything()),
    ];
    for subscription in &mut subscriptions {
        assert!(matches!(subscription.next_delivery().await, Ok(Delivery::CaughtUp)));
    }
    store.send(Request::Panic).unwrap();
    for subscription in &mut subscriptions {
        assert_eq!(subscription.next().await.err(), Some(StoreError::Closed));
    }
    let refused = store.append(&name, Expected::Any, vec![event("m", "0")]).await;
    assert_eq!(refused, Err(StoreError::Closed));
    let late = Subscription::stream(Arc::clone(&store) as _, name, None).next().await;
    assert_eq!(late.err(), Some(StoreError::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_behind_its_back_shows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for number in 0..9 {
        let name = stream(&format!("task-{}", number % 3));
        store
            .append(&name, Expected::Any, vec![event("tokens-charged", &format!("{{\"usd\":{number}}}"))])
            .await
            .unwrap();
    }
    assert_eq!(verify(&store).await, Ok(9));
    let conn = Connection::open(path(&folder)).unwrap();
    let tampered = async |change: &str| {
        conn.execute_batch(&format!("SAVEPOINT before; {change}; RELEASE before")).unwrap();
        verify(&store).await.expect_err(change)
    };
    let found = tampered("UPDATE events SET data = '{\"usd\":0}' WHERE position = 6").await;
    assert!(matches!(found, Break::Link { at: Position(6), .. }), "{found}");
    conn.execute_batch("UPDATE events SET data = '{\"usd\":5}' WHERE position = 6").unwrap();
    assert_eq!(verify(&store).await, Ok(9), "back as it was");
    let found = tampered("UPDATE events SET type = 'refunded' WHERE position = 4").await;
    assert!(matches!(found, Break::Link { at: Position(4), .. }), "{found}");
    let found = tampered("DELETE FROM events WHERE position = 2").await;
    assert!(matches!(found, Break::Position { after: Position(1), found: Position(3) }), "{found}");
}

/// A stream with words that occur nowhere else, some of them larger than a page.
fn words(task: usize, revision: usize) -> (String, NewEvent) {
    let canary = format!("canary-{task}-{revision}-{:x}.", (task * 7_919 + revision * 104_729) ^ 0x5bd1_e995);
    // Rows of all sizes: several on a page, just one, and some on pages of their own.
    let filler = "lorem ipsum ".repeat((task * 31 + revision * 17) % 1_500);
    let content = format!(r#"{{"text":"{filler}{canary}{filler}"}}"#);
    (canary, conformance::event_with_private("message", r#"{"n":1,"text":"[erased]"}"#, &content))
}

/// Every byte of every file in the folder.
fn raw(folder: &TempDir) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

fn found(files: &[(String, Vec<u8>)], words: &str) -> Option<String> {
    let holds = |bytes: &[u8]| bytes.windows(words.len()).any(|window| window == words.as_bytes());
    files.iter().find(|(_, bytes)| holds(bytes)).map(|(name, _)| name.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_in_no_file() {
    const TASKS: usize = 24;
    const EVENTS: usize = 10;
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let mut gone = Vec::new();
    let mut kept = HashMap::new();
    for revision in 0..EVENTS {
        for task in 0..TASKS {
            let (canary, new) = words(task, revision);
            store.append(&stream(&format!("task-{task}")), Expected::Any, vec![new]).await.unwrap();
            kept.entry(task).or_insert_with(Vec::new).push(canary);
        }
    }
    let before = raw(&folder);
    assert!(kept.values().flatten().all(|canary| found(&before, canary).is_some()), "the search finds what is there");
    // In an order of no meaning, with appends in between and once with a restart.
    for turn in 0..TASKS - 4 {
        let task = (turn * 11 + 3) % TASKS;
        assert_eq!(store.erase(&[stream(&format!("task-{task}"))]).await, Ok(EVENTS as u64));
        gone.extend(kept.remove(&task).unwrap());
        let (canary, new) = words(100, turn);
        store.append(&stream("task-100"), Expected::Any, vec![new]).await.unwrap();
        kept.entry(100).or_default().push(canary);
        if turn == 7 {
            drop(store);
            store = open(&folder);
        }
    }
    let files = raw(&folder);
    for canary in &gone {
        assert_eq!(found(&files, canary), None, "{canary} is still there");
    }
    assert!(kept.values().flatten().all(|canary| found(&files, canary).is_some()), "and nothing else is gone");
    let all = store.head().await.unwrap().0;
    assert_eq!(verify(&store).await, Ok(all), "the chain verifies without the words");

    let conn = Connection::open(path(&folder)).unwrap();
    let position: u64 =
        conn.query_row("SELECT MAX(position) FROM contents WHERE content IS NOT NULL", [], |row| row.get(0)).unwrap();
    conn.execute("UPDATE contents SET content = replace(content, 'canary', 'parrot') WHERE position = ?1", [position])
        .unwrap();
    let broken = verify(&store).await.expect_err("words that were never said");
    assert!(matches!(broken, Break::Content { at, .. } if at.0 == position), "{broken}");
    // A seal is part of what the links cover.
    conn.execute("UPDATE events SET seal = zeroblob(32) WHERE position = 5", []).unwrap();
    let broken = verify(&store).await.expect_err("another seal");
    assert!(matches!(broken, Break::Link { at: Position(5), .. }), "{broken}");
    conn.execute("UPDATE events SET seal = NULL WHERE position = 5", []).unwrap();
    assert!(verify(&store).await.is_err(), "no seal");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_waits_for_readers_and_then_happens() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder));
    let name = stream("task-1");
    let (canary, new) = words(1, 1);
    store.append(&name, Expected::NoStream, vec![new]).await.unwrap();
    // A back-up that takes its time: it still sees the words.
    let reader = Connection::open(path(&folder)).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM contents;").unwrap();
    let erasing = tokio::spawn({
        let (store, name) = (Arc::clone(&store), name.clone());
        async move { store.erase(std::slice::from_ref(&name)).await }
    });
    store.append(&name, Expected::Any, vec![event("m", "{}")]).await.expect("appends go on");
    let mut erased = read_whole_stream(&*store, &name).await.unwrap()[0].erased;
    while !erased {
        tokio::task::yield_now().await;
        erased = read_whole_stream(&*store, &name).await.unwrap()[0].erased;
    }
    assert!(found(&raw(&folder), &canary).is_some(), "the old page cannot go while somebody reads it");
    assert!(!erasing.is_finished());
    drop(reader);
    assert_eq!(erasing.await.unwrap(), Ok(1));
    assert_eq!(found(&raw(&folder), &canary), None);
}

#[tokio::test]
async fn a_log_from_before_there_were_private_parts_reads_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (name, old) = (stream("task-1"), event("created", "{\"task\":\"old\"}"));
    {
        let conn = Connection::open(path(&folder)).unwrap();
        conn.execute_batch(EVENT_LOG).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        let (meta, _, body) = chain::prepare(&name, &old);
        let links = chain::extend(chain::Digest::GENESIS, chain::Digest::GENESIS, body);
        conn.execute_batch("INSERT INTO streams (id, name) VALUES (1, 'task-1')").unwrap();
        conn.execute(
            "INSERT INTO events VALUES (1, 1, 0, 'created', ?1, ?2, ?3)",
            rusqlite::params![meta, [links.stream.0, links.global.0].concat(), old.data.get()],
        )
        .unwrap();
    }
    let store = open(&folder);
    store.append(&name, Expected::Exactly(Revision(0)), vec![words(1, 1).1]).await.unwrap();
    assert_eq!(verify(&store).await, Ok(2));
    let read = read_whole_stream(&store, &name).await.unwrap();
    assert_eq!((read[0].id, read[0].data.get(), read[0].erased), (old.id, old.data.get(), false));
    assert_eq!(store.keeps_apart(&name).await, Ok(false), "its first words are in the chain itself");
    assert_eq!(store.erase(std::slice::from_ref(&name)).await, Ok(1), "and stay there");
    let new = stream("task-2");
    store.append(&new, Expected::NoStream, vec![words(2, 1).1]).await.unwrap();
    assert_eq!(store.keeps_apart(&new).await, Ok(true));
}

const CHILD: &str = "EVENT_STORE_CHILD";
const CHILD_WRITERS: u64 = 8;

/// Not a test of its own: the process that the next test kills. Prints each append once it is acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test that kills it"]
#[allow(clippy::print_stdout)]
async fn child_that_appends() {
    let Ok(file) = std::env::var(CHILD) else { return };
    let store = Arc::new(SqliteStore::open(file).unwrap());
    let mut writers = JoinSet::new();
    for writer in 0..CHILD_WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let name = stream(&format!("task-{writer}"));
            loop {
                let batch = (0..1 + writer).map(|_| event("m", "{\"some\":\"content\"}")).collect();
                let appended = store.append(&name, Expected::Any, batch).await.unwrap();
                println!("acked {writer} {} {}", appended.revision.0, appended.position.0);
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut acked: HashMap<(u64, u64), u64> = HashMap::new();
    for lines in [400, 1_500, 37, 2_000] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::sqlite::tests::child_that_appends", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, path(&folder))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut read = 0;
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            if let Some(words) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("acked ")) {
                let numbers: Vec<u64> = words.split(' ').map(|word| word.parse().unwrap()).collect();
                acked.insert((numbers[0], numbers[1]), numbers[2]);
                read += 1;
                if read == lines {
                    child.kill().unwrap();
                }
            }
            line.clear();
        }
        child.wait().unwrap();
        assert!(read >= lines, "the child ended after {read} appends");

        let store = open(&folder);
        verify(&store).await.unwrap();
        for writer in 0..CHILD_WRITERS {
            let name = stream(&format!("task-{writer}"));
            let whole = read_whole_stream(&store, &name).await.unwrap();
            assert!(whole.iter().map(|event| event.revision.0).eq(0..whole.len() as u64));
            assert_eq!(whole.len() as u64 % (1 + writer), 0, "half a batch");
            for ((_, revision), position) in acked.iter().filter(|((by, _), _)| *by == writer) {
                assert_eq!(whole.get(*revision as usize).map(|event| event.position.0), Some(*position), "lost");
            }
        }
    }
    assert!(mark(&folder) > 0, "long enough that the index was written");
}
