//! A campaign over many repositories, some of which are broken, on a server that is killed again and again: every task
//! settled, no branch and no commit twice, the shared cap never passed, and only what failed is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use orchestra_events::Envelope;
use orchestra_events::ledger::{LedgerEvent, audit};
use serde_json::{Value, json};

use crate::harness::{Api, House, MODEL, PATIENCE, Seed, Setup, TASK, bash, done, git, script};

/// Repositories of the large campaign, unless `ORCHESTRA_CAMPAIGN_REPOS` says otherwise. Each costs a sandbox; two hundred
/// take 17 seconds on two idle cores and 42 on busy ones, and what is looked at before and after half as much again.
const REPOS: usize = 200;
/// Every tenth repository is broken until it is mended.
const BROKEN_EVERY: usize = 10;
/// Kills while it runs.
const KILLS: usize = 3;

fn repos() -> usize {
    std::env::var("ORCHESTRA_CAMPAIGN_REPOS").ok().and_then(|text| text.parse().ok()).unwrap_or(REPOS)
}

fn name(number: usize) -> String {
    format!("acme/r{number:03}")
}

/// So many repositories, each a copy of the first one.
fn seed(house: &House, count: usize) {
    let root = house.remotes.local_root();
    for number in 0..count {
        let bare = root.join(format!("{}.git", name(number)));
        git(root, &["clone", "--quiet", "--bare", "acme/api.git", bare.to_str().unwrap()]);
        git(&bare, &["config", "core.logAllRefUpdates", "always"]);
    }
}

fn bare(house: &House, number: usize) -> std::path::PathBuf {
    house.remotes.local_root().join(format!("{}.git", name(number)))
}

fn branches(bare: &Path) -> Vec<String> {
    let all = git(bare, &["for-each-ref", "--format=%(refname:short)", "refs/heads/orchestra"]);
    all.lines().map(str::to_owned).collect()
}

fn turns() -> Value {
    json!([bash("echo done >> log.txt"), done()])
}

fn payload(repos: Vec<Value>) -> Value {
    json!({ "name": "The campaign", "repos": repos, "task": TASK, "model": MODEL, "team": "platform" })
}

fn names(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!(name(number))).collect()
}

async fn create(house: &House, payload: &Value) -> String {
    let request = house.api.request(reqwest::Method::POST, "/v1/campaigns").json(payload);
    let (status, campaign) = house.api.send(request.header("idempotency-key", "the-only-one")).await;
    assert_eq!(status, 202, "{campaign:#}");
    campaign["id"].as_str().unwrap().to_owned()
}

async fn campaign(api: &Api, id: &str) -> Value {
    let (status, campaign) = api.get(&format!("/v1/campaigns/{id}")).await;
    assert_eq!(status, 200, "{campaign}");
    campaign
}

/// The stream of a campaign, by its id's digits.
fn stream(envelope: &Value) -> bool {
    envelope["stream"].as_str().is_some_and(|stream| stream.starts_with("campaign-"))
}

/// Waits until so many events of this type are in the log.
async fn events_of(house: &House, kind: &str, count: usize) -> Vec<Value> {
    let mut frames = house.api.follow(&format!("/v1/events?type={kind}"), Some(0)).await;
    let mut events = Vec::new();
    while events.len() < count {
        let frame = frames.next().await.expect("the stream goes on");
        if stream(&frame.data) && frame.kind == kind {
            events.push(frame.data);
        }
    }
    events
}

/// Everything in the log so far.
async fn log(house: &House) -> Vec<Value> {
    let head = house.api.get("/readyz").await.1["head"].as_u64().unwrap();
    let mut frames = house.api.follow("/v1/events", Some(0)).await;
    let mut events = Vec::new();
    while let Some(frame) = frames.next().await {
        let position = frame.id.unwrap();
        events.push(frame.data);
        if position >= head {
            break;
        }
    }
    events
}

/// Holds the team's ledger to its promise, event by event, and answers what was spent.
fn audited(log: &[Value]) -> i64 {
    let events: Vec<LedgerEvent> = log
        .iter()
        .filter(|event| event["stream"] == "ledger-platform")
        .map(|event| serde_json::from_value::<Envelope>(event.clone()).unwrap())
        .filter_map(|envelope| LedgerEvent::decode(&envelope).unwrap())
        .collect();
    let totals = audit::check(&events).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(totals.open.is_empty(), "{:?}", totals.open);
    assert_eq!(totals.overruns, 0);
    totals.settled.nano_usd.nanos()
}

/// The starts of each repository's task, as the campaign's stream has them.
fn starts(log: &[Value]) -> BTreeMap<u64, Vec<u64>> {
    let mut starts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for event in log.iter().filter(|event| event["type"] == "campaign-child-started") {
        let number = |name: &str| event["data"][name].as_u64().unwrap();
        starts.entry(number("index")).or_default().push(number("run"));
    }
    starts
}

/// How often each task was queued.
fn queued(log: &[Value]) -> BTreeMap<String, usize> {
    let mut queued = BTreeMap::new();
    for event in log.iter().filter(|event| event["type"] == "queued") {
        *queued.entry(event["stream"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    queued
}

/// Each of these repositories holds one branch with one commit that came there with one push.
fn assert_done_once(house: &House, numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        let bare = bare(house, number);
        let branches = branches(&bare);
        assert_eq!(branches.len(), 1, "{number}: {branches:?}");
        assert_eq!(git(&bare, &["rev-list", "--count", &format!("main..{}", branches[0])]), "1", "{number}");
        let moves = std::fs::read_to_string(bare.join("logs/refs/heads").join(&branches[0])).unwrap();
        // From where to where. Git notes a move before it makes it, so one that a kill came between is noted twice.
        let distinct: BTreeSet<_> = moves.lines().map(|line| line.split_at(81).0).collect();
        assert_eq!(distinct.len(), 1, "{number}: {moves}");
        assert_eq!(git(&bare, &["show", &format!("{}:log.txt", branches[0])]), "done", "{number}");
    }
}

/// The places of the tasks that failed, and why each did.
async fn failed(house: &House, campaign: &Value) -> BTreeMap<usize, Value> {
    let mut failed = BTreeMap::new();
    for (place, child) in campaign["children"].as_array().unwrap().iter().enumerate() {
        if child["status"] == "failed" {
            let task = house.api.get(&format!("/v1/tasks/{}", child["task"].as_str().unwrap())).await.1;
            failed.insert(place, task["failure"].clone());
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_gets_through_faults_and_kills_and_redoes_only_what_failed() {
    let count = repos();
    let config = "[scheduler]\nplaces = 8\nper_team = 8\n";
    let mut house = Setup::new(script(turns())).config(config).open().await;
    seed(&house, count);
    let broken: Vec<usize> = (0..count).filter(|number| number % BROKEN_EVERY == 3).collect();
    let mut repos = names(count);
    for (place, number) in broken.iter().enumerate() {
        let away = bare(&house, *number);
        if place % 2 == 0 {
            // The repository is not there.
            std::fs::rename(&away, away.with_extension("away")).unwrap();
        } else {
            // The branch to start from is not there.
            repos[*number] = json!({ "repo": name(*number), "base": "release" });
        }
    }
    let mut asked = payload(repos);
    asked["concurrency"] = json!(6);
    asked["budget"] = json!({ "maxUsd": 50 });
    asked["taskBudget"] = json!({ "maxUsd": 1 });
    let began = Instant::now();
    let id = create(&house, &asked).await;
    let mut seed = Seed(7);
    for kill in 1..=KILLS {
        events_of(&house, "campaign-child-finished", count * kill / (KILLS + 1)).await;
        tokio::time::sleep(std::time::Duration::from_millis(seed.below(150))).await;
        house.kill().await;
        house.restart().await;
        // Whoever got no answer asks again, and is given the same campaign.
        assert_eq!(create(&house, &asked).await, id);
    }
    events_of(&house, "campaign-finished", 1).await;
    let took = began.elapsed();
    let first = campaign(&house.api, &id).await;
    let good = count - broken.len();
    assert_eq!(first["status"], "finished");
    let failed = failed(&house, &first).await;
    assert!(failed.keys().eq(&broken), "{failed:#?}");
    assert_eq!(first["progress"]["succeeded"], good, "{:#}", first["progress"]);
    let whole = log(&house).await;
    assert!(audited(&whole) <= 50_000_000_000);
    assert_eq!(starts(&whole), (0..count as u64).map(|index| (index, vec![1])).collect());
    assert!(queued(&whole).values().all(|times| *times == 1));
    assert_done_once(&house, (0..count).filter(|number| !broken.contains(number)));

    // Mended, and only those that failed are done again.
    for (place, number) in broken.iter().enumerate() {
        let bare = bare(&house, *number);
        if place % 2 == 0 {
            std::fs::rename(bare.with_extension("away"), &bare).unwrap();
        } else {
            git(&bare, &["branch", "release", "main"]);
        }
    }
    let (status, again) = house.api.post(&format!("/v1/campaigns/{id}/retry"), &json!({})).await;
    assert_eq!((status, &again["status"]), (202, &json!("running")), "{again:#}");
    events_of(&house, "campaign-finished", 2).await;
    let last = campaign(&house.api, &id).await;
    assert_eq!(last["progress"]["succeeded"], count, "{:#}", last["progress"]);
    assert_eq!(house.api.post(&format!("/v1/campaigns/{id}/retry"), &json!({})).await.0, 409);
    let whole = log(&house).await;
    let spent = audited(&whole);
    for (index, runs) in starts(&whole) {
        let failed = broken.contains(&usize::try_from(index).unwrap());
        assert_eq!(runs, if failed { vec![1, 2] } else { vec![1] }, "{index}");
    }
    assert_eq!(queued(&whole).values().sum::<usize>(), count + broken.len());
    assert_done_once(&house, 0..count);
    // Each repository has a task of its own, and what they cost is what the campaign costs.
    let children = last["children"].as_array().unwrap();
    let tasks: BTreeSet<&str> = children.iter().map(|child| child["task"].as_str().unwrap()).collect();
    assert_eq!(tasks.len(), count);
    let cost = last["usage"]["costUsd"].to_string().parse::<f64>().unwrap() * 1e9;
    assert!((cost - spent as f64).abs() < 1.0, "{cost} {spent}");
    println!("{count} repositories, {} broken, {KILLS} kills: {took:?}", broken.len());
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_after_any_event_of_a_campaign_changes_nothing() {
    let marks = tempfile::tempdir().unwrap();
    let mut house = Setup::new(script(turns())).open().await;
    seed(&house, 2);
    house.kill().await;
    let mut asked = payload(names(3));
    asked["concurrency"] = json!(1);
    // created; started and finished for each of three, the last of which is not there, and the end with it.
    for revision in 0..=6 {
        let file = marks.path().join(format!("reached-{revision}"));
        let point = ("ORCHESTRA_FAILPOINT".to_owned(), format!("campaign:{revision}:{}", file.display()));
        house.restart_with(&[point]).await;
        if revision == 0 {
            let request = house.api.request(reqwest::Method::POST, "/v1/campaigns").json(&asked);
            let request = request.header("idempotency-key", "the-only-one");
            tokio::spawn(async move { drop(request.send().await) });
        }
        let deadline = Instant::now() + PATIENCE;
        while !file.exists() {
            assert!(Instant::now() < deadline, "revision {revision} is not reached");
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        house.kill().await;
    }
    house.restart().await;
    let id = create(&house, &asked).await;
    events_of(&house, "campaign-finished", 1).await;
    let ended = campaign(&house.api, &id).await;
    assert_eq!((&ended["progress"]["succeeded"], &ended["progress"]["failed"]), (&json!(2), &json!(1)), "{ended:#}");
    assert_done_once(&house, 0..2);
    let whole = log(&house).await;
    audited(&whole);
    assert_eq!(starts(&whole), (0..3).map(|index| (index, vec![1])).collect());
    let kinds: Vec<_> =
        whole.iter().filter(|event| stream(event)).map(|event| event["type"].as_str().unwrap()).collect();
    let mut expected = vec!["campaign-created"];
    for _ in 0..3 {
        expected.extend(["campaign-child-started", "campaign-child-finished"]);
    }
    expected.push("campaign-finished");
    assert_eq!(kinds, expected);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tasks_of_a_campaign_spend_no_more_than_its_budget_together() {
    // Each reply costs three cents.
    let mut turns = turns();
    for turn in turns.as_array_mut().unwrap() {
        turn["usage"] = json!({ "inputTokens": 10, "outputTokens": 2_000 });
    }
    let house = Setup::new(script(turns)).open().await;
    seed(&house, 8);
    let mut asked = payload(names(8));
    asked["budget"] = json!({ "maxTokens": 5 });
    let (status, problem) = house.api.post("/v1/campaigns", &asked).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/budget")), "{problem:#}");
    asked["budget"] = json!({ "maxUsd": 0.15 });
    asked["concurrency"] = json!(3);
    let id = create(&house, &asked).await;
    // Those that are left are not begun only to fail: it pauses, and says why.
    events_of(&house, "campaign-paused", 1).await;
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        let ended = campaign(&house.api, &id).await;
        if ended["progress"]["running"] == 0 {
            break ended;
        }
        assert!(Instant::now() < deadline, "{ended:#}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("paused"), &json!("the campaign's budget is used up")),
        "{ended:#}"
    );
    let count = |name: &str| ended["progress"][name].as_u64().unwrap();
    assert!(count("succeeded") >= 1 && (1..=3).contains(&count("failed")), "{:#}", ended["progress"]);
    assert!(count("waiting") >= 3, "{:#}", ended["progress"]);
    assert!(audited(&log(&house).await) <= 150_000_000);
    let over =
        ended["children"].as_array().unwrap().iter().find(|child| child["failure"] == "budget-exceeded").unwrap();
    let failure = house.task(over["task"].as_str().unwrap()).await["failure"].clone();
    assert_eq!(failure["budget"]["scope"], format!("campaign:{id}"), "{failure:#}");
    assert_eq!(failure["budget"]["period"], "campaign");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_without_its_secrets_waits_for_them_and_a_cancelled_one_stops() {
    let mut house = Setup::new(script(turns())).key_required().open().await;
    seed(&house, 3);
    let secrets = json!({ "model": { "apiKey": "sk-of-the-campaign" } });
    let mut asked = payload(names(3));
    asked["credentials"] = secrets.clone();
    asked["concurrency"] = json!(2);
    let id = create(&house, &asked).await;
    events_of(&house, "campaign-child-started", 1).await;
    house.kill().await;
    house.restart().await;
    let puts = format!("2 tasks wait for credentials: PUT /v1/campaigns/{id}/credentials");
    // Whatever runs or begins now has lost its key, until the campaign is given it again.
    let waiting = |campaign: &Value| {
        let children = campaign["children"].as_array().unwrap().clone();
        children.iter().filter(|child| child["status"] == "awaiting-credentials").count()
    };
    let deadline = Instant::now() + PATIENCE;
    while waiting(&campaign(&house.api, &id).await) < 2 {
        assert!(Instant::now() < deadline, "{:#}", campaign(&house.api, &id).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let stalled = campaign(&house.api, &id).await;
    assert!(stalled["reason"].as_str().unwrap().contains(&puts), "{stalled:#}");
    // Whoever says the same again brings them along.
    assert_eq!(create(&house, &asked).await, id);
    events_of(&house, "campaign-finished", 1).await;
    assert_eq!(campaign(&house.api, &id).await["progress"]["succeeded"], 3);
    assert_done_once(&house, 0..3);

    // Another one, which is cancelled while its first task waits for a slow model.
    let mut asked = payload(names(3));
    asked["concurrency"] = json!(1);
    let (status, second) = house.api.post("/v1/campaigns", &asked).await;
    assert_eq!(status, 202, "{second}");
    let second = second["id"].as_str().unwrap().to_owned();
    let cancel = json!({ "reason": "not needed any more" });
    let (status, answer) = house.api.post(&format!("/v1/campaigns/{second}/cancel"), &cancel).await;
    assert_eq!((status, &answer["status"]), (202, &json!("cancelled")), "{answer}");
    events_of(&house, "campaign-finished", 2).await;
    let ended = campaign(&house.api, &second).await;
    assert!(ended["progress"]["cancelled"].as_u64().unwrap() >= 2, "{:#}", ended["progress"]);
    house.nothing_left().await;
}
