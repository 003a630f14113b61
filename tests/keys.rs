//! Keys from the command line: made, bounded, used, rotated with an overlap and revoked, with the server killed in between.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Api, House, Setup, done, program, script};

/// Runs `orchestra keys …` as the holder of this key; answers its code and what it printed.
async fn keys(house: &House, key: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program()
        .arg("keys")
        .args(arguments)
        .args(["--server", &house.api.base])
        .env("ORCHESTRA_KEY", key)
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Makes a key and answers its id and its text.
async fn create(house: &House, arguments: &[&str]) -> (String, String) {
    let (code, shown, errors) = keys(house, house.api.key(), &[&["create"], arguments].concat()).await;
    assert_eq!(code, Some(0), "{shown}{errors}");
    assert!(shown.contains("only time it is shown"), "{shown}");
    let word = |start: &str| shown.split_whitespace().find(|word| word.starts_with(start)).unwrap().to_owned();
    (word("key_"), word("orc_"))
}

async fn status(house: &House, key: &str, path: &str) -> u16 {
    Api::new(&house.api.base, key).get(path).await.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_from_the_command_line_to_its_revocation_across_a_crash() {
    let mut house = Setup::new(script(json!([done()]))).open().await;
    let scopes = ["--scope", "tasks:*", "--scope", "audit:read"];
    let bounded = ["--team", "platform", "--repo", "local:acme/*", "--network", "127.0.0.0/8", "--expires", "90d"];
    let (id, first) = create(&house, &[&["web ci"], &scopes[..], &bounded[..]].concat()).await;
    let (code, shown, _) = keys(&house, house.api.key(), &["list"]).await;
    assert!(code == Some(0) && shown.contains(&id) && shown.contains("web ci"), "{shown}");
    assert!(!shown.contains("orc_"), "a list shows no text: {shown}");

    // What it may, it does; what it may not, it is told.
    let api = Api::new(&house.api.base, &first);
    let (code, task) = api.post("/v1/tasks", &house.payload()).await;
    assert_eq!(code, 202, "{task}");
    let (code, shown, errors) = keys(&house, &first, &["create", "more", "--scope", "admin"]).await;
    assert!(code != Some(0) && shown.is_empty() && errors.contains("keys:write"), "{errors}");

    // Its use is written down, and the log keeps no text.
    let view = format!("/v1/keys/{id}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let used = loop {
        let (_, key) = house.api.get(&view).await;
        if key["lastUsedAt"].is_string() {
            break key;
        }
        assert!(Instant::now() < deadline, "{key}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(used["lastUsedFrom"], "127.0.0.1");

    // Rotated from the command line: for a while both texts work.
    let (code, shown, errors) = keys(&house, house.api.key(), &["rotate", &id, "--overlap", "1h", "--quiet"]).await;
    assert_eq!(code, Some(0), "{errors}");
    let second = shown.trim().to_owned();
    assert!(second.starts_with("orc_live_") && second != first);
    house.kill().await;
    house.restart().await;
    for text in [&first, &second] {
        assert_eq!(status(&house, text, "/v1/tasks").await, 200, "both, also after a crash");
    }
    let (_, after) = house.api.get(&view).await;
    assert_eq!((&after["lastUsedAt"], &after["status"]), (&used["lastUsedAt"], &json!("active")));

    // Revoked: what is open with it ends within a second, of the server and of the dashboard.
    let mut open = Vec::new();
    for (text, path) in [(&first, "/live/tasks"), (&second, "/live/tasks")] {
        let api = Api::new(&house.api.base, text);
        let answer = api.request(Method::GET, path).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        open.push(answer);
    }
    let started = Instant::now();
    let (code, _, errors) = keys(&house, house.api.key(), &["revoke", &id]).await;
    assert_eq!(code, Some(0), "{errors}");
    let revoked = Instant::now();
    for stream in &mut open {
        let end = async { while matches!(stream.chunk().await, Ok(Some(_))) {} };
        tokio::time::timeout(Duration::from_secs(10), end).await.expect("it ends");
    }
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}, asked {:?} ago", revoked.elapsed(), started.elapsed());
    for text in [&first, &second] {
        assert_eq!(status(&house, text, "/v1/tasks").await, 401);
    }
    house.kill().await;
    house.restart().await;
    assert_eq!(status(&house, &second, "/v1/tasks").await, 401, "for good");
    assert_eq!(house.api.get(&view).await.1["status"], "revoked");

    // The whole story is in its stream, and no text of it anywhere in the data.
    let events = house.log_of(&format!("key-{}", uuid(&id))).await;
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["key-issued", "key-used", "key-rotated", "key-revoked"]);
    assert_eq!(events[0]["actor"]["origin"]["address"], "127.0.0.1");
    house.server.take().unwrap().stop().await;
    for secret in [&first, &second].map(|text| text.rsplit('_').next().unwrap()) {
        assert!(!holds(&house.data(), secret.as_bytes()), "a key's text is on the disk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_tasks_are_open_than_a_key_may_have_before_and_after_a_crash() {
    // The model waits so long that nothing ends by itself.
    let mut house = Setup::new(script(json!([{ "text": "…", "delayMs": 600_000 }])))
        .config("[teams.platform.limits]\nconcurrent_tasks = 7\n[scheduler]\nplaces = 1\nper_team = 1\n")
        .open()
        .await;
    let flags = ["--team", "platform", "--scope", "tasks:*", "--concurrent-tasks", "5"];
    let (_, key) = create(&house, &[&["five"], &flags[..]].concat()).await;
    let api = Api::new(&house.api.base, &key);
    let payload = house.payload();
    let submit = |name: String| api.request(Method::POST, "/v1/tasks").header("idempotency-key", name).json(&payload);
    let each = async |number: usize| {
        let (status, body) = api.send(submit(number.to_string())).await;
        (number, status, body)
    };
    let all = futures_util::future::join_all((0..64).map(each)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, status, _)| *status == 202);
    assert_eq!((taken.len(), refused.len()), (5, 59));
    assert!(refused.iter().all(|(_, status, told)| *status == 429 && told["code"] == "too-many-tasks"), "{refused:?}");
    // A repeat of one that was let in is no further task; one that was not is told when to try again.
    let (status, repeated) = api.send(submit(taken[0].0.to_string())).await;
    assert_eq!((status, &repeated["id"]), (202, &taken[0].2["id"]));
    let answer = submit(refused[0].0.to_string()).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"10".parse().unwrap()));
    // The team's limit holds for all its keys.
    let (other_id, other) = create(&house, &["others", "--team", "platform", "--scope", "tasks:*"]).await;
    let other = Api::new(&house.api.base, &other);
    let seen: Vec<u16> = [other.post("/v1/tasks", &payload).await.0, other.post("/v1/tasks", &payload).await.0].into();
    assert_eq!(seen, [202, 202], "{other_id}");
    let (status, problem) = other.post("/v1/tasks", &payload).await;
    assert_eq!((status, &problem["code"]), (429, &json!("too-many-tasks")));
    assert!(problem["detail"].as_str().unwrap().contains("The team"), "{problem}");

    house.kill().await;
    house.restart().await;
    assert_eq!(api.post("/v1/tasks", &payload).await.0, 429, "the count is right again");
    // One that ends makes room for one, and no more.
    let id = taken[0].2["id"].as_str().unwrap();
    let (status, _) = api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await;
    assert!((200..300).contains(&status), "{status}");
    house.ended(id).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while api.post("/v1/tasks", &payload).await.0 != 202 {
        assert!(Instant::now() < deadline, "a place comes back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.post("/v1/tasks", &payload).await.0, 429);
    assert_eq!(api.post(&format!("/v1/tasks/{id}/retry"), &json!({})).await.0, 429, "nor by starting it again");
}

/// A key's id as its stream writes it.
fn uuid(id: &str) -> String {
    const ALPHABET: &str = "0123456789abcdefghjkmnpqrstvwxyz";
    let digits = id.strip_prefix("key_").unwrap();
    let number = digits.chars().fold(0u128, |number, digit| (number << 5) | ALPHABET.find(digit).unwrap() as u128);
    let hex = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whether one of the databases in this folder holds these bytes.
fn holds(folder: &std::path::Path, bytes: &[u8]) -> bool {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_file()).collect();
    assert!(files.iter().any(|entry| entry.file_name() == "events.db"), "the log is looked at");
    files.iter().any(|entry| {
        let found = std::fs::read(entry.path()).unwrap();
        found.windows(bytes.len()).any(|part| part[0] == bytes[0] && part == bytes)
    })
}
