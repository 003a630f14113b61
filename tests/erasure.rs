//! What is to be forgotten is forgotten: no file of the data folder has the words any more, and everything else is as it
//! was: the proof, the sums, the pages.
//!
//! Words that occur nowhere else go in wherever words can go in, and then every file is searched for them, the databases'
//! write-ahead logs included.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use orchestra_events::store::chain::Verifier;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::store::{LinkedLog, MAX_PAGE};
use orchestra_events::task::TaskEvent;
use orchestra_events::task::event::TaskSpec;
use orchestra_events::{
    Actor, CampaignId, EventId, EventStore, Expected, Failure, FailureCode, NewEvent, StreamName, TaskId,
};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{House, REPO, Setup, bash, done, program, script, until};

/// Where each kind of words goes in.
const PROMPT: &str = "canaryprompt7f3a";
const METADATA: &str = "canarymetadata91c2";
const TITLE: &str = "canarytitle55d0";
const SAID: &str = "canarysaid08be";
const LARGE: &str = "canarylarge4471";
const COMMAND: &str = "canarycommand6e9f";
const PRINTED: &str = "canaryprinted1d83";
const STEERED: &str = "canarysteered2ac5";
const WRITTEN: &str = "canarywritten39f1";
const ALL: [&str; 9] = [PROMPT, METADATA, TITLE, SAID, LARGE, COMMAND, PRINTED, STEERED, WRITTEN];

/// Which of these words are in a file below this folder, and in which.
fn found(words: &[&str], folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for word in words {
        let output = Command::new("grep").env("LC_ALL", "C").args(["-raFl", word]).arg(folder).output().unwrap();
        let files = String::from_utf8_lossy(&output.stdout);
        found.extend(files.lines().map(|file| format!("{word} in {file}")));
    }
    found
}

/// Which of the words are in no file at all: a search that finds nothing has to find something first.
fn unseen<'a>(words: &[&'a str], folder: &Path) -> Vec<&'a str> {
    words.iter().copied().filter(|word| found(&[word], folder).is_empty()).collect()
}

/// A conversation with words of every kind in it.
fn conversation() -> Value {
    let large = format!("{LARGE} {}", "so it goes on and on ".repeat(3_000));
    let (first, rest) = PRINTED.split_at(6);
    json!([
        { "text": format!("First {SAID}."), "tools": [{ "name": "bash", "input":
            { "command": format!(": {COMMAND}; printf '%s%s\\n' {first} {rest}; sleep 3") } }] },
        { "text": large, "tools": [{ "name": "write", "input": { "path": "notes.md", "content": format!("# {WRITTEN}\n") } }] },
        { "text": "It is done." },
    ])
}

/// A task into which all the words have gone, and which has ended.
async fn lived(house: &House) -> String {
    let id = house
        .submit(json!({
            "task": format!("Write the {PROMPT} down."),
            "metadata": { "note": METADATA },
            "pullRequest": { "title": TITLE },
        }))
        .await;
    house.event(&id, "tool-called").await;
    let words = json!({ "message": format!("Mind the {STEERED}.") });
    let (status, answer) = house.api.post(&format!("/v1/tasks/{id}/messages"), &words).await;
    assert_eq!(status, 202, "{answer}");
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    id
}

async fn erase(house: &House, id: &str) -> (u16, Value) {
    house.api.send(house.api.request(Method::DELETE, &format!("/v1/tasks/{id}/content"))).await
}

/// Everything that counts: what was used, by everything it can be split by, and the budgets.
async fn sums(house: &House) -> Vec<Value> {
    let mut sums = Vec::new();
    for path in ["/v1/usage?groupBy=team,model,day", "/v1/usage", "/v1/budgets?team=platform"] {
        let (status, body) = house.api.get(path).await;
        assert_eq!(status, 200, "{body}");
        sums.push(body);
    }
    sums
}

/// Walks the chain of a log that nobody has open, without and with what is left of the words.
async fn verified(data: &Path) -> u64 {
    let store = SqliteStore::open(data.join("events.db")).unwrap();
    let mut verifier = Verifier::default();
    loop {
        let page = store.read_links(verifier.head().0, MAX_PAGE).await.unwrap();
        if page.is_empty() {
            assert_eq!(verifier.head().0, store.head().await.unwrap());
            return verifier.head().0.0;
        }
        page.iter().for_each(|linked| verifier.check(linked).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_of_a_task_are_in_no_file_and_its_record_is_whole() {
    // The other task stays: what it says must be no word that is looked for.
    let script = json!([
        { "match": "Another one", "turns": [bash("sleep 3"), done()] },
        { "match": "", "turns": conversation() },
    ]);
    let mut house = Setup::new(script).open().await;
    let data = house.data();
    let id = lived(&house).await;
    let other = house.submit(json!({ "task": "Another one: canaryother." })).await;
    house.event(&other, "tool-called").await;
    assert_eq!(erase(&house, &other).await.0, 409, "it is still going on");
    let (status, _) = house.api.post(&format!("/v1/tasks/{other}/cancel"), &json!({})).await;
    assert_eq!(status, 202);
    house.ended(&other).await;
    assert_eq!(unseen(&ALL, &data), Vec::<&str>::new(), "the search finds what is there");
    let (events, before, task) = (house.events(&id).await, sums(&house).await, house.task(&id).await);

    let (status, answer) = erase(&house, &id).await;
    assert_eq!(status, 204, "{answer}");
    assert_eq!(found(&ALL, &data), Vec::<String>::new());
    assert_eq!(erase(&house, &id).await.0, 204, "again is harmless");

    // What is left of it.
    let left = house.events(&id).await;
    assert_eq!(left.len(), events.len() + 1);
    for (left, event) in left.iter().zip(&events) {
        for field in ["id", "type", "revision", "time", "actor"] {
            assert_eq!(left[field], event[field], "{left}");
        }
        let kind = left["type"].as_str().unwrap();
        if ["created", "message", "tool-called", "tool-finished", "steered", "committed"].contains(&kind) {
            assert_eq!(left["erased"], true, "{left}");
        } else if ["model-called", "tokens-charged", "succeeded"].contains(&kind) {
            assert_eq!((left, left.get("erased")), (event, None));
        }
    }
    let erased = house.task(&id).await;
    assert_eq!(erased["task"], "[erased]");
    assert!(erased["contentErasedAt"].is_string(), "{erased:#}");
    for field in ["id", "status", "usage", "repo", "model", "team", "createdAt", "finishedAt", "attempt"] {
        assert_eq!(erased[field], task[field], "{field}");
    }
    let (status, problem) = house.api.get(&format!("/v1/tasks/{id}/diff")).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("conflict")), "{problem}");
    let (status, problem) = house.api.post(&format!("/v1/tasks/{id}/retry"), &json!({})).await;
    assert_eq!(status, 409);
    assert!(problem["detail"].as_str().unwrap().contains("erased"), "{problem}");
    let log = house.log_of(&StreamName::task(id.parse().unwrap()).to_string()).await;
    assert_eq!(log.last().unwrap()["data"], json!({ "reason": "request", "events": events.len() }));

    // The sums are what they were, also when they are added up anew, and so is the proof.
    assert_eq!(sums(&house).await, before);
    let shown = house.task(&id).await;
    house.server.take().unwrap().stop().await;
    assert!(verified(&data).await > events.len() as u64);
    let rebuilt = program().args(["projections", "rebuild", "--data"]).arg(&data).output().await.unwrap();
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    house.restart().await;
    assert_eq!(sums(&house).await, before);
    assert_eq!(house.task(&id).await, shown);
    assert_eq!(found(&ALL, &data), Vec::<String>::new());
    assert!(!found(&["canaryother"], &data).is_empty(), "what nobody wants forgotten is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_was_promised_is_kept_after_a_kill() {
    let mut house = Setup::new(script(conversation())).open().await;
    let data = house.data();
    let id = lived(&house).await;
    let events = house.events(&id).await.len();
    house.kill().await;
    let marks = tempfile::tempdir().unwrap();
    let reached = marks.path().join("reached");
    let failpoint = ("ORCHESTRA_FAILPOINT".to_owned(), format!("{events}:{}", reached.display()));
    house.restart_with(&[failpoint]).await;
    let request = house.api.request(Method::DELETE, &format!("/v1/tasks/{id}/content"));
    let asked = tokio::spawn(request.send());
    until("the event is in the log", || reached.exists()).await;
    house.kill().await;
    assert!(asked.await.unwrap().is_err(), "nobody was told anything");
    assert_eq!(unseen(&ALL, &data), Vec::<&str>::new(), "it died between the event and the deletion");
    house.restart().await;
    until("the words are gone", || found(&ALL, &data).is_empty()).await;
    let kinds: Vec<_> = house.events(&id).await.iter().skip(events).map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["content-erased"], "it was promised once");
    until("nothing is left to be done", || std::fs::read_dir(data.join("erasing")).unwrap().count() == 0).await;
    house.server.take().unwrap().stop().await;
    verified(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_takes_its_tasks_with_it() {
    let turns = json!([
        { "text": format!("First {SAID}."), "tools": [{ "name": "write", "input":
            { "path": "notes.md", "content": format!("# {WRITTEN}\n") } }] },
        { "text": "It is done." },
    ]);
    let house = Setup::new(script(turns)).open().await;
    let data = house.data();
    let mut asked = house.payload();
    asked["task"] = format!("Write the {PROMPT} down.").into();
    asked["name"] = format!("The {TITLE}").into();
    asked["repos"] = json!([REPO]);
    asked.as_object_mut().unwrap().remove("repo");
    let (status, campaign) = house.api.post("/v1/campaigns", &asked).await;
    assert_eq!(status, 202, "{campaign}");
    let path = format!("/v1/campaigns/{}", campaign["id"].as_str().unwrap());
    let content = || house.api.request(Method::DELETE, &format!("{path}/content"));
    assert_eq!(house.api.send(content()).await.0, 409, "it is still going on");
    let ended = async || loop {
        let (_, campaign) = house.api.get(&path).await;
        if campaign["finishedAt"].is_string() {
            return campaign;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let campaign = ended().await;
    let words = [PROMPT, TITLE, SAID, WRITTEN];
    assert_eq!(unseen(&words, &data), Vec::<&str>::new());
    let (status, answer) = house.api.send(content()).await;
    assert_eq!(status, 202, "{answer}");
    until("the words are gone", || found(&words, &data).is_empty()).await;
    let (_, left) = house.api.get(&path).await;
    assert_eq!(left["name"], "[erased]", "{left:#}");
    assert!(left["contentErasedAt"].is_string());
    assert_eq!(left["usage"], campaign["usage"]);
    assert_eq!(house.api.post(&format!("{path}/retry"), &json!({})).await.0, 409);
}

fn spec(team: &str, task: &str) -> TaskSpec {
    serde_json::from_value(json!({
        "repo": "local:acme/api", "task": task, "model": "claude-sonnet-4-6", "harness": "builtin", "team": team,
        "budget": {}, "branch": "b", "image": "default", "timeoutSeconds": 60, "callerBringsModelKey": false,
        "callerBringsGitToken": false,
    }))
    .unwrap()
}

/// Writes a task that failed so many days ago into a log that nobody has open.
async fn failed_ago(store: &dyn EventStore, days: i64, team: &str, words: &str) -> TaskId {
    let id = TaskId::from_uuid(Uuid::now_v7());
    let failure = Failure::new(FailureCode::NothingToPush, format!("Nothing about {words}."));
    let events = [
        TaskEvent::Created(Box::new(spec(team, words))),
        TaskEvent::Queued {},
        TaskEvent::Failed { failure, attempt: 0 },
    ];
    let stamped = events.iter().map(|event| {
        let (data, private) = event.parts(*b"salt for words of days long gone").unwrap();
        NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: event.kind().into(),
            schema: 1,
            time: Timestamp::now() - SignedDuration::from_hours(24 * days),
            actor: Actor::system("test"),
            correlation: None,
            causation: None,
            data,
            private,
        }
    });
    store.append(&StreamName::task(id), Expected::NoStream, stamped.collect()).await.unwrap();
    id
}

/// How often the read models' file was written anew, as it were: each `VACUUM` adds one to the schema cookie, which stands
/// at this place of a database that nobody has open (the SQLite file format, 1.3.9).
fn schema_cookie(data: &Path) -> u32 {
    let header = std::fs::read(data.join("read.db")).unwrap();
    let cookie = u32::from_be_bytes(header[40..44].try_into().unwrap());
    assert!(cookie > 0, "it is written");
    cookie
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_go_when_they_are_as_old_as_the_operator_says() {
    let rules = "[retention]\ncontent_days = 30\n[teams.kept.retention]\ncontent_days = 0\n\
                 [teams.short.retention]\ncontent_days = 2\n";
    let mut house = Setup::new(script(json!([]))).config(rules).open().await;
    let data = house.data();
    house.server.take().unwrap().stop().await;
    // Written anew once before, so that nothing of the database is in its write-ahead log alone.
    let untidy = data.join("erasing/tidy");
    std::fs::write(&untidy, "").unwrap();
    house.restart().await;
    until("the read models are tidy", || !untidy.exists()).await;
    house.server.take().unwrap().stop().await;
    let written_before = schema_cookie(&data);
    let store: Arc<dyn EventStore> = Arc::new(SqliteStore::open(data.join("events.db")).unwrap());
    let mut goes = Vec::new();
    // More than one batch, so that the sweep has to go on.
    for number in 0..120 {
        let word = format!("canaryold{number}.");
        goes.push((failed_ago(&*store, 31 + number, "platform", &word).await, word));
    }
    let word = "canaryshort.".to_owned();
    goes.push((failed_ago(&*store, 3, "short", &word).await, word));
    let stays = [
        (failed_ago(&*store, 29, "platform", "canaryyoung.").await, "canaryyoung."),
        (failed_ago(&*store, 400, "kept", "canarykept.").await, "canarykept."),
        (failed_ago(&*store, 1, "short", "canaryshortly.").await, "canaryshortly."),
    ];
    // A campaign that was promised to go and does not read: it waits, and nothing else waits for it.
    let odd = StreamName::campaign(CampaignId::from_uuid(Uuid::now_v7()));
    let unreadable = NewEvent {
        id: EventId(Uuid::now_v7()),
        kind: "campaign-created".into(),
        schema: 1,
        time: Timestamp::now(),
        actor: Actor::system("test"),
        correlation: None,
        causation: None,
        data: serde_json::value::RawValue::from_string("{}".to_owned()).unwrap(),
        private: None,
    };
    store.append(&odd, Expected::NoStream, vec![unreadable]).await.unwrap();
    std::fs::write(data.join("erasing").join(odd.to_string()), "").unwrap();
    drop(store);
    house.restart().await;
    until("the words are gone", || found(&["canaryold", "canaryshort."], &data).is_empty()).await;
    let left = || std::fs::read_dir(data.join("erasing")).unwrap().map(|entry| entry.unwrap().file_name());
    until("the sweep is over", || left().eq([odd.as_str()])).await;
    for (id, word) in &goes {
        let task = house.task(&id.to_string()).await;
        assert_eq!(task["failure"]["code"], "nothing-to-push", "{word}");
        assert!(task["contentErasedAt"].is_string(), "{word}");
        let last = house.events(&id.to_string()).await.pop().unwrap();
        assert_eq!((&last["data"]["reason"], &last["actor"]["id"]), (&"retention".into(), &"retention".into()));
    }
    for (id, word) in stays {
        assert!(!found(&[word], &data).is_empty(), "{word} is kept");
        assert_eq!(house.task(&id.to_string()).await["contentErasedAt"], Value::Null, "{word}");
    }
    house.server.take().unwrap().stop().await;
    assert_eq!(
        schema_cookie(&data),
        written_before + 1,
        "the read models are written anew once a sweep, not once a batch"
    );
}
