//! Keys and tokens are nowhere but in the memory of the server and in the requests that need them.
//!
//! Canaries go in where users put secrets, everything that can go wrong goes wrong, and then every file, answer, log
//! line, command line and environment is searched for them, in each form a secret takes on its way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{GIT_TOKEN, House, Setup, bash, done, processes_of};
use orchestra_test_forges::{At, Fault, GitServer};

/// The caller's model key, with the characters that are written differently in URLs.
const MODEL_KEY: &str = "sk-canary/model+key=5c1d%9e";
/// The one that replaces it.
const SECOND_MODEL_KEY: &str = "canary~second+model/key=77ab";
/// The operator's own, out of a variable of the server.
const OPERATOR_KEY: &str = "sk-canary/operator+key=d0e4%1f";
/// A token that the forge does not know.
const WRONG_TOKEN: &str = "ghp_canary/wrong+token=42aa%00";

/// Base64 of whatever holds the secret, wherever in it the secret begins: the characters that it alone decides.
fn base64_cores(secret: &str) -> Vec<String> {
    let cores = (0..3).map(|offset| {
        let padded = [&b"\0\0"[..offset], secret.as_bytes()].concat();
        let text = base64::engine::general_purpose::STANDARD.encode(&padded);
        text[(offset * 8).div_ceil(6)..(padded.len() * 8) / 6].to_owned()
    });
    cores.flat_map(|core| [core.clone(), core.replace('+', "-").replace('/', "_")]).collect()
}

fn percent_encoded(secret: &str, hex: fn(u8) -> String) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    secret.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { hex(byte) }).collect()
}

/// Every form of a secret that is looked for.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![
        secret.to_owned(),
        percent_encoded(secret, |byte| format!("%{byte:02X}")),
        percent_encoded(secret, |byte| format!("%{byte:02x}")),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ];
    forms.extend(base64_cores(secret));
    forms.sort();
    forms.dedup();
    forms
}

/// What a careless other side repeats to whoever asks: the request's own headers, raw and decoded.
fn echo(user: &str, secret: &str) -> String {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"));
    let alone = base64::engine::general_purpose::STANDARD.encode(secret);
    let url = percent_encoded(secret, |byte| format!("%{byte:02X}"));
    format!("denied: Authorization: Basic {basic} x-api-key={secret} Bearer {secret} b64={alone} url={url} end")
}

/// Files below these places that hold one of the forms.
fn search(forms: &[String], places: &[&Path]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let patterns = dir.path().join("patterns");
    fs::write(&patterns, forms.join("\n")).unwrap();
    assert!(places.iter().all(|place| place.exists()), "{places:?}");
    let mut grep = Command::new("grep");
    let output = grep.env("LC_ALL", "C").args(["-raFo", "-f"]).arg(&patterns).args(places).output().unwrap();
    // A sandbox may be cleared away while its folder is searched; anything else that cannot be read could hide something.
    let complaints = String::from_utf8_lossy(&output.stderr);
    let unread: Vec<_> = complaints.lines().filter(|line| !line.ends_with(": No such file or directory")).collect();
    assert!(output.status.code().is_some() && unread.is_empty(), "{unread:?}");
    let found: std::collections::BTreeSet<_> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    found.into_iter().collect()
}

/// Looks at every process of the machine, again and again, until it is told to stop.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<(usize, Vec<String>)>>,
}

impl Watch {
    /// The server has the operator's key in its environment, which is where the operator put it; so does, for the
    /// moment between fork and exec, the server's own image in a child that is about to become something else.
    fn start(server: u32, forms: Vec<String>, operator: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut rounds, mut found) = (0, Vec::new());
            let own = fs::read(format!("/proc/{server}/cmdline")).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").unwrap().flatten() {
                    let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
                    // The command line before its environment: a child that turns into its own program between the two
                    // is looked at again in the next round, as what it has become.
                    let (command, environment) = (read("cmdline"), read("environ"));
                    for text in [&environment, &command].map(|bytes| String::from_utf8_lossy(bytes)) {
                        let known = |form: &&String| {
                            text.contains(form.as_str()) && !(command == own && operator.contains(form))
                        };
                        let command = String::from_utf8_lossy(&command).replace('\0', " ");
                        found.extend(forms.iter().find(known).map(|form| format!("{command}: {form}")));
                    }
                }
                rounds += 1;
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a look at all processes now and then, on its own thread"
                )]
                std::thread::sleep(Duration::from_millis(15));
            }
            (rounds, found)
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let (rounds, found) = self.thread.take().unwrap().join().unwrap();
        assert!(rounds > 5, "it has looked");
        found
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A pattern of grep's that finds the text and is not found by it.
fn unlike_itself(form: &str) -> String {
    let (first, rest) = form.split_at(1);
    let (second, rest) = rest.split_at(1);
    format!("-e '{first}[{second}]{rest}'")
}

/// Every answer about a task and about everything, as files in this folder.
async fn collect(house: &House, ids: &[String], folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut asked: Vec<(String, &str)> = [
        "/",
        "/v1/tasks",
        "/v1/tasks?limit=1",
        "/v1/usage?groupBy=team,model",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/docs",
        "/v1/events",
        "/live/tasks",
        "/sign-in",
    ]
    .map(|path| (path.to_owned(), "*/*"))
    .to_vec();
    asked.push(("/".into(), "text/html"));
    asked.push(("/v1/events".into(), "application/x-ndjson"));
    for id in ids {
        for (path, accept) in [
            (format!("/v1/tasks/{id}"), "application/json"),
            (format!("/v1/tasks/{id}/events?limit=500"), "application/json"),
            (format!("/v1/tasks/{id}/events"), "text/event-stream"),
            (format!("/v1/tasks/{id}/diff"), "*/*"),
            (format!("/tasks/{id}"), "text/html"),
            (format!("/tasks/{id}/live"), "text/event-stream"),
            (format!("/tasks/{id}/diff"), "text/html"),
            (format!("/tasks/{id}/diff.patch"), "*/*"),
        ] {
            asked.push((path, accept));
        }
    }
    let answers =
        futures_util::stream::iter(asked.into_iter().enumerate()).map(|(number, (path, accept))| async move {
            let answer = house.api.request(Method::GET, &path).header("accept", accept).send().await.unwrap();
            let mut text = format!("{path} {:?}\n", answer.headers()).into_bytes();
            let mut chunks = answer.bytes_stream();
            // A live stream has no end: what comes within a moment is its history.
            while let Ok(Some(Ok(chunk))) = tokio::time::timeout(Duration::from_millis(400), chunks.next()).await {
                text.extend_from_slice(&chunk);
            }
            fs::write(folder.join(format!("answer-{number}")), text).unwrap();
        });
    answers.buffer_unordered(32).collect::<Vec<()>>().await;
}

fn status_fault(status: u16, secret: &str) -> Value {
    json!({ "kind": "status", "status": status, "message": echo("x", secret), "times": if status == 500 { 9 } else { 1 } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_tokens_appear_nowhere() {
    let secrets = [MODEL_KEY, SECOND_MODEL_KEY, OPERATOR_KEY, WRONG_TOKEN, GIT_TOKEN];
    let all: Vec<String> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    let patterns: Vec<String> = all.iter().map(|form| unlike_itself(form)).collect();
    let inside = format!(
        "env > /tmp/all; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline >> /tmp/all 2>/dev/null; ls -R /proc/self/fd >> /tmp/all; \
         grep -ral {} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; wc -c < /tmp/all; git config --list; echo searched",
        patterns.join(" ")
    );
    let script = json!([
        { "match": "work", "turns": [bash(&inside), bash("echo x > x; sleep 2"), done()] },
        { "match": "push", "turns": [bash("echo x > x; sleep 1"), done()] },
        { "match": "second", "turns": [{ "text": "no", "fault": status_fault(403, SECOND_MODEL_KEY) }] },
        { "match": "refused", "turns": [{ "text": "no", "fault": status_fault(401, MODEL_KEY) }] },
        { "match": "broken", "turns": [{ "text": "no", "fault": { "kind": "errorEvent", "message": echo("x", MODEL_KEY) } }] },
        { "match": "down", "turns": [{ "text": "no", "fault": status_fault(500, MODEL_KEY) }] },
        { "match": "operator", "turns": [{ "text": "no", "fault": status_fault(401, OPERATOR_KEY) }] },
        { "match": "", "turns": [done()] },
    ]);
    let mut house = Setup::new(script)
        .key_required()
        .environment("ORCHESTRA_LOG", "trace")
        .environment("ORCHESTRA_RETRY__MOST_FAILURES", "2")
        .environment("NO_OPERATOR_KEY", OPERATOR_KEY)
        .open()
        .await;
    let server = house.server.as_ref().unwrap().id();
    let watch = Watch::start(server, all.clone(), forms(OPERATOR_KEY));
    let answers = tempfile::tempdir().unwrap();
    let said = |name: &str, text: String| fs::write(answers.path().join(name), text).unwrap();
    let credentials = |key: &str, token: &str| json!({ "model": { "apiKey": key }, "git": { "token": token } });
    let with = |word: &str, model: &str, key: &str, token: &str| json!({ "task": word, "repo": "plain:acme/api", "model": model, "credentials": credentials(key, token) });
    let claude = "claude-sonnet-4-6";
    let mut ids = Vec::new();

    // All is well: searched inside, while it runs, and from everywhere.
    let work = house.submit(with("work", claude, MODEL_KEY, GIT_TOKEN)).await;
    let other = house.submit(with("work too", "compatible/any", MODEL_KEY, GIT_TOKEN)).await;
    house
        .event_after(&work, None, |frame| {
            frame.kind == "tool-called" && frame.data["data"]["input"]["command"] == "echo x > x; sleep 2"
        })
        .await;
    assert!(!processes_of(&house.data()).is_empty(), "a sandbox is up");
    assert_eq!(search(&all, &[&house.data(), &house.path().join("server.log")]), [""; 0], "while a task runs");
    for id in [&work, &other] {
        let task = house.ended(id).await;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let events = house.events(id).await;
        let search = events.iter().find(|event| event["type"] == "tool-finished").unwrap();
        let output = search["data"]["output"].as_str().unwrap();
        // Nothing is found: the first line is the size of what was gathered, not a file's name.
        assert!(output.lines().next().unwrap().trim().parse::<u64>().is_ok_and(|size| size > 100), "{output}");
        assert!(output.ends_with("searched\n[exit code 0]"), "{output}");
    }
    let authorized = house.remotes.http.authorizations();
    assert!(!authorized.is_empty(), "the token was used");
    ids.extend([work, other]);

    // The provider refuses and repeats the key.
    for (word, model, key) in [
        ("refused", claude, MODEL_KEY),
        ("refused chat", "compatible/any", MODEL_KEY),
        ("second", claude, SECOND_MODEL_KEY),
        ("broken", claude, MODEL_KEY),
        ("broken chat", "compatible/any", MODEL_KEY),
        ("down", claude, MODEL_KEY),
        ("operator", claude, ""),
    ] {
        let mut body = with(word, model, key, GIT_TOKEN);
        if key.is_empty() {
            body["credentials"] = json!({ "git": { "token": GIT_TOKEN } });
        }
        let id = house.submit(body).await;
        let stands = |frame: &crate::harness::Frame| matches!(&*frame.kind, "failed" | "credentials-required");
        let last = house.event_after(&id, None, stands).await;
        let failure = &last.data["data"]["failure"];
        assert!(failure["code"].as_str().is_some_and(|code| code.starts_with("model-")), "{word}: {last:?}");
        assert!(failure["message"].as_str().unwrap().contains("denied"), "the provider's sentence is told: {failure}");
        if last.kind == "credentials-required" {
            let path = format!("/v1/tasks/{id}/credentials");
            let (status, body) = house.api.put(&path, &json!({ "model": { "apiKey": SECOND_MODEL_KEY } })).await;
            assert_eq!(status, 202, "{body}");
            said(&format!("rotated-{id}"), body.to_string());
            // The provider takes the new key; the model has nothing to say.
            let last = house.event_after(&id, last.id, stands).await;
            assert_eq!(last.data["data"]["failure"]["code"], "nothing-to-push", "{word}: {last:?}");
        }
        ids.push(id);
    }

    // The forge refuses and repeats the token, at once and at the push.
    let elsewhere = GitServer::start(house.remotes.local_root(), WRONG_TOKEN).await;
    let refusal = |status: u16, kind: &'static str, secret: &str| {
        let text = echo("git", secret);
        let body = if kind == "application/json" { json!({ "message": text }).to_string() } else { text };
        Fault::Status(status, kind, body, Some(("X-Echo", echo("git", secret))))
    };
    let plain = "text/plain";
    for (token, fault) in [
        (WRONG_TOKEN, None),
        (WRONG_TOKEN, Some(refusal(401, plain, WRONG_TOKEN))),
        (GIT_TOKEN, Some(refusal(401, "application/json", GIT_TOKEN))),
        (GIT_TOKEN, Some(refusal(403, plain, GIT_TOKEN))),
        (WRONG_TOKEN, Some(refusal(403, "application/json", WRONG_TOKEN))),
        (GIT_TOKEN, Some(refusal(404, plain, GIT_TOKEN))),
        (GIT_TOKEN, Some(refusal(500, plain, GIT_TOKEN))),
        (GIT_TOKEN, Some(refusal(200, plain, GIT_TOKEN))),
        (GIT_TOKEN, Some(Fault::Redirect(elsewhere.base()))),
    ] {
        house.remotes.http.fault(fault.clone().map(|fault| (At::All, fault)));
        let id = house.submit(with("clone", claude, MODEL_KEY, token)).await;
        let stands = |frame: &crate::harness::Frame| matches!(&*frame.kind, "failed" | "credentials-required");
        let last = house.event_after(&id, None, stands).await;
        assert!(last.data["data"]["failure"]["message"].is_string(), "{fault:?}: {last:?}");
        ids.push(id);
    }
    assert_eq!(elsewhere.authorizations(), [""; 0], "a redirect does not take the token along");
    house.remotes.http.fault(None);
    for fault in [refusal(403, plain, GIT_TOKEN), refusal(401, plain, GIT_TOKEN)] {
        let id = house.submit(with("push", claude, MODEL_KEY, GIT_TOKEN)).await;
        house.event(&id, "sandbox-started").await;
        house.remotes.http.fault(Some((At::All, fault)));
        let stands = |frame: &crate::harness::Frame| matches!(&*frame.kind, "failed" | "credentials-required");
        let last = house.event_after(&id, None, stands).await;
        let code = last.data["data"]["failure"]["code"].as_str().unwrap();
        assert!(code.starts_with("git-"), "{last:?}");
        house.remotes.http.fault(None);
        ids.push(id);
    }
    let hook = house.remotes.bare().join("hooks/pre-receive");
    fs::write(&hook, format!("#!/bin/sh\necho '{}' >&2\nexit 1\n", echo("git", GIT_TOKEN))).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let id = house.submit(with("push again", claude, MODEL_KEY, GIT_TOKEN)).await;
    let task = house.ended(&id).await;
    assert_eq!(task["failure"]["code"], "push-rejected", "{task:#}");
    ids.push(id);
    fs::remove_file(&hook).unwrap();

    // Secrets in requests that are refused.
    for (number, body) in [
        json!({ "credentials": MODEL_KEY }),
        json!({ "credentials": { "model": MODEL_KEY } }),
        json!({ "credentials": { "model": { "apiKey": [MODEL_KEY] } } }),
        json!({ "credentials": { "model": { "apiKey": format!("{MODEL_KEY} x") } } }),
        json!({ "credentials": { "git": { "token": format!("{WRONG_TOKEN}\n") } } }),
        json!({ "repo": format!("https://git:{WRONG_TOKEN}@github.com/acme/api") }),
        json!({ "harness": MODEL_KEY }),
    ]
    .iter()
    .enumerate()
    {
        let mut payload = house.payload();
        payload.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let (status, problem) = house.api.post("/v1/tasks", &payload).await;
        assert_eq!(status, 422, "{problem}");
        said(&format!("refused-{number}"), problem.to_string());
        let path = format!("/v1/tasks/{}/credentials", ids[0]);
        let (status, problem) = house.api.put(&path, &body["credentials"]).await;
        assert!((400..500).contains(&status), "{problem}");
        said(&format!("refused-put-{number}"), problem.to_string());
    }
    let cut = with("cut", claude, MODEL_KEY, GIT_TOKEN).to_string();
    let cut = house
        .api
        .request(Method::POST, "/v1/tasks")
        .header("content-type", "application/json")
        .body(cut[..cut.len() - 1].to_owned());
    let (status, problem) = house.api.send(cut).await;
    assert_eq!(status, 400);
    said("cut", problem.to_string());
    let key = house.api.key().to_owned();
    let patient = reqwest::Client::builder().timeout(super::harness::PATIENCE).build().unwrap();
    let wrong = patient.get(format!("{}/v1/tasks", house.api.base)).bearer_auth(format!("{key}0"));
    let (status, problem) = house.api.send(wrong).await;
    assert_eq!(status, 401);
    said("wrong-key", problem.to_string());

    collect(&house, &ids, &answers.path().join("pages")).await;
    assert_eq!(watch.finish(), [""; 0], "command lines and environments");
    let admin = [key.clone(), key.rsplit('_').next().unwrap().to_owned()];
    let every: Vec<String> = all.iter().cloned().chain(admin.iter().flat_map(|key| forms(key))).collect();
    // Dead at once: what was only in the write-ahead log is still there.
    house.kill().await;
    assert!(fs::metadata(house.data().join("events.db-wal")).unwrap().len() > 0);
    let log = house.path().join("server.log");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"TRACE\""), "the log tells everything");
    let places = [house.data(), log, house.remotes.local_root().to_owned(), answers.path().to_owned()];
    let places: Vec<&Path> = places.iter().map(|place| place.as_path()).collect();
    assert_eq!(search(&every, &places), [""; 0], "files, logs and answers");

    // And the search finds what is there.
    for form in &every {
        fs::write(answers.path().join("planted"), format!("\0x{form}y\n")).unwrap();
        assert_eq!(search(&every, &[answers.path()]).len(), 1, "{form}");
    }
}
