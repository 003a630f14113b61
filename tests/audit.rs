//! The audit of a server that has lived: what stands in it, what its money comes to, and what an export of it proves to
//! whoever has nothing but the file and a public key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orchestra_events::audit::SigningKey;
use orchestra_events::audit::checkpoint::Statement;
use orchestra_events::audit::export::{Header, Trailer};
use orchestra_events::audit::hex::Hex;
use orchestra_events::task::TaskEvent;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{House, PATIENCE, Setup, bash, done, nano_usd, program};
use crate::webhooks::receiver::{Answer, Receiver};

/// Columns that count what a task used.
const COUNTS: [&str; 4] = ["inputTokens", "outputTokens", "cacheReadTokens", "cacheWriteTokens"];

/// Runs `orchestra audit …`; answers its code and all that it said.
async fn audit(house: &House, arguments: &[&str]) -> (Option<i32>, String) {
    let run = program().arg("audit").args(arguments).env("ORCHESTRA_KEY", house.api.key()).output();
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// A house in which a task has gone well, one was refunded, one lost its server, and one was forgotten.
async fn lived() -> (House, BTreeMap<&'static str, String>) {
    let named = |name: &str, turns: Value| json!({ "match": format!("<{name}>"), "turns": turns });
    let cut = json!({ "text": "cut off in the middle", "fault": { "kind": "truncate" } });
    let slow = json!({ "text": "Wait for it.", "delayMs": 1_500 });
    let script = json!([
        named("well", json!([bash("echo once >> log.txt"), done()])),
        named("badly", json!([bash("echo once >> log.txt"), cut])),
        named("killed", json!([slow, done()])),
        named("forgotten", json!([bash("echo once >> log.txt"), done()])),
    ]);
    let more = "[retry]\nmost_failures = 2\nfirst_wait = \"20ms\"\n[webhooks]\nnetworks = [\"127.0.0.0/8\"]\n";
    let mut house = Setup::new(script).without_retry().config(more).open().await;
    let mut ids = BTreeMap::new();
    for (name, project) in [("well", "infra"), ("badly", "infra"), ("forgotten", "web"), ("killed", "web")] {
        let asked = house.model.requests().await.len();
        let id = house.submit(json!({ "task": format!("Do <{name}>."), "project": project })).await;
        if name == "killed" {
            house.model.asked(asked + 1).await;
            house.event(&id, "model-called").await;
            house.kill().await;
            house.restart().await;
        }
        house.ended(&id).await;
        ids.insert(name, id);
    }
    let content = format!("/v1/tasks/{}/content", ids["forgotten"]);
    assert_eq!(house.api.send(house.api.request(Method::DELETE, &content)).await.0, 204);
    (house, ids)
}

/// Every row of the audit with these filters, from JSON pages.
async fn rows(house: &House, filters: &str) -> Vec<Value> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = house.api.get(&format!("/v1/audit?limit=2{filters}{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        rows.extend(page["data"].as_array().unwrap().iter().cloned());
        let Some(next) = page["nextCursor"].as_str() else { return rows };
        cursor = format!("&cursor={next}");
    }
}

/// The same rows from the CSV, each cell under its column's name.
fn cells(csv: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = csv.trim_end().split("\r\n");
    let head: Vec<_> = lines.next().unwrap().split(',').collect();
    lines.map(|line| head.iter().copied().zip(line.split(',')).collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_the_report_the_ledger_and_the_tasks_are_the_same_money() {
    let (house, ids) = lived().await;
    let tasks = rows(&house, "&category=task").await;
    assert_eq!(tasks.len(), ids.len());

    // Row by row against the task's own stream.
    for row in &tasks {
        let events = house.events(row["task"].as_str().unwrap()).await;
        let sum = |kind: &str, pick: &dyn Fn(&Value) -> u64| -> u64 {
            events.iter().filter(|event| event["type"] == kind).map(|event| pick(&event["data"])).sum()
        };
        let number = |name: &'static str| move |data: &Value| data[name].as_u64().unwrap();
        let (cost, refunded) =
            (sum("tokens-charged", &number("costNanoUsd")), sum("refund-granted", &number("nanoUsd")));
        assert_eq!(nano_usd(&row["usage"]["costUsd"]), cost, "{row}");
        assert_eq!(nano_usd(&row["usage"]["billableUsd"]), cost - refunded, "{row}");
        for name in ["inputTokens", "outputTokens"] {
            let of_usage = |data: &Value| data["usage"][name].as_u64().unwrap_or_default();
            assert_eq!(row["usage"][name].as_u64().unwrap(), sum("tokens-charged", &of_usage), "{row}");
        }
    }

    // In every grouping that the audit knows, against the report; the whole of it against the ledger.
    let total = |rows: &[Value], name: &str| -> u64 { rows.iter().map(|row| nano_usd(&row["usage"][name])).sum() };
    let (_, report) = house.api.get("/v1/usage?team=platform").await;
    let ledger = house.log_of("ledger-platform").await;
    let settled: u64 = ledger.iter().filter_map(|event| event["data"]["costNanoUsd"].as_u64()).sum();
    assert_eq!(total(&tasks, "costUsd"), settled);
    assert_eq!(nano_usd(&report["total"]["costUsd"]), settled);
    let refunded = nano_usd(&report["total"]["refundedUsd"]);
    assert!(refunded > 0, "a task was refunded");
    assert_eq!(total(&tasks, "costUsd") - total(&tasks, "billableUsd"), refunded);
    for by in ["team", "project", "model"] {
        let (_, report) = house.api.get(&format!("/v1/usage?groupBy={by}")).await;
        let groups = report["groups"].as_array().unwrap();
        assert!(!groups.is_empty());
        for group in groups {
            let key = group[by].as_str().unwrap();
            let found = rows(&house, &format!("&category=task&{by}={key}")).await;
            assert_eq!(found.len() as u64, group["tasks"].as_u64().unwrap(), "{by} {key}");
            assert_eq!(total(&found, "costUsd"), nano_usd(&group["costUsd"]), "{by} {key}");
            for name in COUNTS {
                let sum: u64 = found.iter().map(|row| row["usage"][name].as_u64().unwrap()).sum();
                assert_eq!(sum, group[name].as_u64().unwrap(), "{by} {key} {name}");
            }
        }
    }

    // The CSV has the same rows, from the interface and from a terminal.
    let csv = house.api.text("/v1/audit?category=task&format=csv").await;
    let lines = cells(&csv);
    assert_eq!(lines.len(), tasks.len());
    for (cells, row) in lines.iter().zip(&tasks) {
        assert_eq!(
            (cells["task"], cells["outcome"]),
            (row["task"].as_str().unwrap(), row["outcome"].as_str().unwrap())
        );
        for name in ["costUsd", "billableUsd", "inputTokens", "outputTokens", "cacheReadTokens", "cacheWriteTokens"] {
            assert_eq!(cells[name], row["usage"][name].to_string(), "{name}");
        }
    }
    let well = house.task(&ids["well"]).await;
    let (code, said) =
        audit(&house, &["list", "--task", &ids["well"], "--kind", "task", "--server", &house.api.base]).await;
    assert!(code == Some(0) && said.contains("succeeded"), "{said}");
    assert!(said.contains(&format!("${}", well["usage"]["costUsd"])), "{said}");
    let arguments = ["list", "--task", &ids["well"], "--csv", "--server", &house.api.base];
    let printed = audit(&house, &arguments).await.1;
    assert_eq!(printed, house.api.text(&format!("/v1/audit?task={}&format=csv", ids["well"])).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acts_are_rows_by_whoever_did_them() {
    let house = Setup::new(json!([])).config("[webhooks]\nnetworks = [\"127.0.0.0/8\"]\n").open().await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let hook = json!({ "url": receiver.url(), "events": ["task.*"], "team": "platform" });
    let (_, hook) = house.api.post("/v1/webhooks", &hook).await;
    let at = |rest: &str| format!("/v1/webhooks/{}{rest}", hook["id"].as_str().unwrap());
    assert_eq!(house.api.post(&at("/secret"), &json!({})).await.0, 200);
    assert_eq!(house.api.post(&at("/replay"), &json!({ "from": 1, "to": 1 })).await.0, 202);
    for body in [json!({ "enabled": false }), json!({ "enabled": true }), json!({ "description": "mine" })] {
        assert_eq!(house.api.send(house.api.request(Method::PATCH, &at("")).json(&body)).await.0, 200);
    }
    assert_eq!(house.api.send(house.api.request(Method::DELETE, &at(""))).await.0, 204);
    let plan = json!({ "effectiveFrom": "2026-01-01", "markUpBasisPoints": 100 });
    assert_eq!(house.api.put("/v1/billing/plans/platform", &plan).await.0, 200);
    assert_eq!(house.api.put("/v1/budgets/team:platform", &json!({ "perDay": { "maxUsd": 9 } })).await.0, 200);
    assert_eq!(house.api.post("/v1/audit/checkpoints", &json!({})).await.0, 201);
    // A person's sign-in with the same key, and its end.
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let form = |path: &str, fields: String| {
        let request = browser.post(format!("{}{path}", house.api.base)).header("origin", &house.api.base);
        let request = request.header("sec-fetch-site", "same-origin");
        request.header("content-type", "application/x-www-form-urlencoded").body(fields)
    };
    let answer = form("/sign-in", format!("key={}&next=%2Ftasks", house.api.key())).send().await.unwrap();
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let value = cookie.split_once('=').unwrap().1;
    let csrf = orchestra_web::pages::shell::csrf_token(value);
    let out = form("/sign-out", format!("csrf={csrf}")).header("cookie", &cookie).send().await.unwrap();
    assert!(out.status().is_redirection() || out.status().is_success(), "{}", out.status());

    let acts = rows(&house, "&category=act").await;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for act in &acts {
        *kinds.entry(act["kind"].as_str().unwrap()).or_default() += 1;
        assert_eq!(act["outcome"], "done", "{act}");
        if act["actor"]["kind"] != "system" {
            assert_eq!(act["actor"]["address"], "127.0.0.1", "{act}");
        }
    }
    println!("{kinds:#?}");
    for (kind, times) in [
        ("webhook-created", 1),
        ("webhook-secret-rotated", 1),
        ("replay-requested", 1),
        ("webhook-disabled", 1),
        ("webhook-enabled", 1),
        ("webhook-changed", 1),
        ("webhook-removed", 1),
        ("plan-set", 1),
        ("budget-set", 1),
        ("checkpoint-signed", 1),
        ("session-started", 1),
        ("session-ended", 1),
    ] {
        assert_eq!(kinds.get(kind), Some(&times), "{kind}: {kinds:?}");
    }
    for act in acts.iter().filter(|act| act["stream"].as_str().unwrap().starts_with("webhook-")) {
        assert_eq!(act["team"], "platform", "{act}");
    }
    assert!(acts.iter().any(|act| act["kind"] == "plan-set" && act["team"] == "platform"));
    let secret = hook["secret"].as_str().unwrap();
    assert!(!serde_json::to_string(&acts).unwrap().contains(secret));
}

/// What was exported: header, events, end; each line with its line feed.
struct File(Vec<Vec<u8>>);

impl File {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        Self(bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect())
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, self.0.concat()).unwrap();
    }

    /// The place of the first event for which this holds.
    fn place(&self, is_it: impl Fn(&Value) -> bool) -> usize {
        let line = |line: &Vec<u8>| is_it(&serde_json::from_slice(line).unwrap());
        self.0.iter().position(line).unwrap()
    }
}

/// Takes the words of an event away, as an erasure would.
fn strip(line: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(line).unwrap();
    let (from, to) = (text.find(",\"salt\":").unwrap(), text.find(",\"event\":{\"id\":").unwrap());
    format!("{}{}", &text[..from], &text[to..]).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_proves_itself_to_whoever_has_the_public_key_and_nothing_else() {
    let (mut house, ids) = lived().await;
    let (_, key) = house.api.get("/v1/audit/key").await;
    let key = key["publicKey"].as_str().unwrap().to_owned();
    let (code, kept) = audit(&house, &["checkpoint", "--server", &house.api.base]).await;
    assert_eq!(code, Some(0), "{kept}");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let checkpoint = at("checkpoint.json");
    std::fs::write(&checkpoint, &kept).unwrap();
    let online = text(&at("online.jsonl.zst"));
    let (code, said) = audit(&house, &["export", "--online", "--server", &house.api.base, "--out", &online]).await;
    assert_eq!(code, Some(0), "{said}");
    house.server.take().unwrap().stop().await;
    let (data, local, bare) = (text(&house.data()), text(&at("local.jsonl")), text(&at("bare.jsonl")));
    for (out, more) in [(&local, &[][..]), (&bare, &["--without-content"][..])] {
        let (code, said) = audit(&house, &[&["export", "--data", &data, "--out", out], more].concat()).await;
        assert_eq!(code, Some(0), "{said}");
    }

    // Nobody serves: the files say it all, to whoever has the key or a checkpoint.
    for file in [&online, &local, &bare] {
        for trust in [["--public-key", &key], ["--checkpoint", &text(&checkpoint)]] {
            let (code, said) = audit(&house, &[&["verify", file][..], &trust[..]].concat()).await;
            assert_eq!(code, Some(0), "{file}: {said}");
            assert!(said.ends_with("OK\n") && said.contains("the money adds up: 1 ledgers"), "{said}");
            assert!(!said.contains("No public key"), "{said}");
        }
    }
    let (code, said) = audit(&house, &["verify", &local]).await;
    assert!(code == Some(0) && said.contains("No public key and no checkpoint"), "{said}");
    let (code, said) = audit(&house, &["verify", "--data", &data, "--public-key", &key]).await;
    assert!(code == Some(0) && said.ends_with("OK\n"), "{said}");

    // Changed in each of the ways: found, and named.
    let good = File::read(Path::new(&local));
    let last = good.0.len() - 1;
    let place = good.place(|line| line["event"]["type"] == "tokens-charged");
    let words = good.place(|line| line["words"].is_object());
    let of_forgotten: orchestra_events::TaskId = ids["forgotten"].parse().unwrap();
    let stream = orchestra_events::StreamName::task(of_forgotten).to_string();
    let gone = good.place(|line| line["event"]["stream"] == *stream && line["seal"].is_string());
    assert!(!String::from_utf8_lossy(&good.0[gone]).contains("\"words\":"), "its words are erased");
    let position = |place: usize| format!("position {place}");
    let foreign = SigningKey::from_bytes(&[7; 32]);
    let public = Hex(foreign.verifying_key().to_bytes());
    let end: Trailer = Trailer::read(good.0[last].strip_suffix(b"\n").unwrap()).unwrap();
    type Change<'a> = Box<dyn Fn(&mut Vec<Vec<u8>>) + 'a>;
    let changes: Vec<(&str, Change<'_>, String)> = vec![
        (
            "flip",
            Box::new(|lines| {
                let digit = lines[place].iter().rposition(u8::is_ascii_digit).unwrap();
                lines[place][digit] ^= 1;
            }),
            format!("BROKEN: altered: {}", position(place)),
        ),
        ("drop", Box::new(|lines| drop(lines.remove(place))), format!("BROKEN: dropped: {}", position(place))),
        ("swap", Box::new(|lines| lines.swap(place, place + 1)), format!("BROKEN: reordered: {}", position(place))),
        (
            "insert",
            Box::new(|lines| lines.insert(place, lines[2].clone())),
            format!("BROKEN: inserted: {}", position(place)),
        ),
        ("truncate", Box::new(|lines| lines.truncate(last - 3)), format!("BROKEN: truncated: {}", position(last - 3))),
        (
            "another key",
            Box::new(|lines| {
                let statement = Statement { time: Timestamp::now(), ..end.checkpoint.statement() };
                lines[0] = Header::new(statement.log, public).line();
                lines[last] = Trailer { checkpoint: statement.sign(&foreign) }.line();
            }),
            "BROKEN: signed by another key: the header".to_owned(),
        ),
        (
            "other words",
            Box::new(|lines| {
                let text = String::from_utf8(lines[words].clone()).unwrap();
                let (head, tail) = text.split_once(",\"words\":{\"").unwrap();
                lines[words] = format!("{head},\"words\":{{\"x{tail}").into_bytes();
            }),
            format!("BROKEN: altered: {}", position(words)),
        ),
        (
            "stripped words",
            Box::new(|lines| lines[words] = strip(&lines[words])),
            format!("words are gone: {}", position(words)),
        ),
    ];
    for (what, change, expected) in &changes {
        let mut lines = File(good.0.clone());
        change(&mut lines.0);
        assert_ne!(lines.0, good.0, "{what}");
        let file = at("changed.jsonl");
        lines.write(&file);
        for trust in [["--public-key", &key], ["--checkpoint", &text(&checkpoint)]] {
            let (code, said) = audit(&house, &[&["verify", &text(&file)][..], &trust[..]].concat()).await;
            assert_eq!(code, Some(1), "{what}: {said}");
            assert!(said.contains(expected.as_str()) && !said.contains("OK\n"), "{what}: not {expected:?}: {said}");
        }
    }
    // What says so of itself is in the log: the erasure.
    let erased = good.place(|line| line["event"]["type"] == "content-erased");
    let event: Value = serde_json::from_slice(&good.0[erased]).unwrap();
    assert_eq!(event["event"]["stream"], *stream);
    assert!(TaskEvent::KINDS.contains(&"content-erased"));
}
