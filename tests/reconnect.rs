//! Whoever reads events and is cut off goes on where it was: every event once, in order, across restarts too.

use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::harness::{Api, Frame, House, PATIENCE, Seed, Setup, bash, done, program, script};

/// How often each reader is cut off.
const CUTS: usize = 50;
/// The wait before a reader comes back to a server that is not there.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server is away that is replaced.
const AWAY: Duration = Duration::from_secs(12);

/// What a reader asks for.
#[derive(Debug, Clone)]
enum Feed {
    /// Server-sent events of a path, resumed with `Last-Event-ID`.
    Events(String),
    /// The whole log, a line an event, resumed with `?after=`.
    Lines,
}

/// One connection: gives events to `take` until that has had enough. `false`: the connection broke.
async fn connection(api: &Api, feed: &Feed, last: Option<u64>, mut take: impl FnMut(Frame) -> bool) -> bool {
    match feed {
        Feed::Events(path) => {
            let Ok(mut frames) = api.try_follow(path, last).await else { return false };
            while let Some(frame) = frames.next().await {
                if frame.id.is_some() && take(frame) {
                    return true;
                }
            }
        }
        Feed::Lines => {
            let path = last.map_or("/v1/events".to_owned(), |last| format!("/v1/events?after={last}"));
            let request = api.request(reqwest::Method::GET, &path).header(ACCEPT, "application/x-ndjson");
            let Ok(mut response) = request.send().await else { return false };
            assert_eq!(response.status(), 200);
            let mut buffer = Vec::new();
            while let Ok(Ok(Some(chunk))) = tokio::time::timeout(PATIENCE, response.chunk()).await {
                buffer.extend_from_slice(&chunk);
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    // An empty line is a sign of life.
                    let Ok(data) = serde_json::from_slice::<Value>(&line) else { continue };
                    let kind = data["type"].as_str().unwrap().to_owned();
                    if take(Frame { id: data["position"].as_u64(), kind, data }) {
                        return true;
                    }
                }
            }
        }
    }
    false
}

/// Reads until the task is over, cut off at random; answers what it saw, in the order in which it saw it.
async fn read(api: Api, feed: Feed, seed: u64) -> Vec<Frame> {
    let mut seed = Seed(seed);
    let mut seen: Vec<Frame> = Vec::new();
    let mut over = false;
    let started = Instant::now();
    let mut cuts = 0;
    while !over {
        assert!(started.elapsed() < PATIENCE, "the end did not come");
        let mut left = if cuts < CUTS { seed.below(4) } else { u64::MAX };
        let last = seen.last().and_then(|frame| frame.id);
        let enough = connection(&api, &feed, last, |frame| {
            // Some connections are cut before anything was read.
            if left == 0 {
                return true;
            }
            left -= 1;
            over = frame.kind == "succeeded";
            seen.push(frame);
            over || left == 0
        })
        .await;
        cuts += 1;
        if !enough {
            tokio::time::sleep(PAUSE).await;
        }
    }
    assert!(cuts >= CUTS, "only {cuts} cuts: the task is too short");
    seen
}

fn ids(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.id.unwrap()).collect()
}

/// A task of some hundred events, slow enough to be read while it happens.
async fn house() -> House {
    let mut turns: Vec<_> = (0..24).map(|turn| bash(&format!("echo {turn} >> log.txt"))).collect();
    for turn in &mut turns {
        turn["delayMs"] = json!(30);
    }
    turns.push(done());
    Setup::new(script(Value::Array(turns))).open().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_once_and_in_order() {
    let mut house = house().await;
    let id = house.submit(json!({})).await;
    let of_task = Feed::Events(format!("/v1/tasks/{id}/events"));
    let feeds = [of_task.clone(), Feed::Events("/v1/events".to_owned()), Feed::Lines];
    let readers: Vec<_> =
        (1..).zip(feeds).map(|(seed, feed)| tokio::spawn(read(house.api.clone(), feed, seed))).collect();
    // In the middle of it, the server dies.
    house.event_after(&id, Some(40), |frame| frame.kind == "tool-called").await;
    house.kill().await;
    house.restart().await;
    let mut seen = Vec::new();
    for reader in readers {
        seen.push(reader.await.unwrap());
    }
    let [of_task, of_log, lines] = <[_; 3]>::try_from(seen).unwrap();

    let events = house.events(&id).await;
    assert!(events.len() > 120, "{}", events.len());
    assert_eq!(ids(&of_task), (0..events.len() as u64).collect::<Vec<_>>());
    let data = |frames: &[Frame]| frames.iter().map(|frame| frame.data.clone()).collect::<Vec<_>>();
    assert_eq!(data(&of_task), events);
    assert!(of_task.iter().all(|frame| frame.data["type"] == frame.kind));

    // The log has more than one stream; a reader that nobody cuts off sees what the others saw.
    let mut whole = Vec::new();
    let mut frames = house.api.follow("/v1/events", None).await;
    while whole.len() < of_log.len() {
        whole.push(frames.next().await.expect("the log does not end"));
    }
    assert_eq!(of_log, whole);
    assert_eq!(data(&lines), data(&whole));
    assert!(ids(&of_log).is_sorted_by(|one, next| one < next));
    let ours = whole.iter().filter(|frame| frame.data["stream"] == events[0]["stream"]);
    // Where its actors came from is in the log alone.
    let without_origin = |frame: &Frame| {
        let mut data = frame.data.clone();
        data["actor"].as_object_mut().unwrap().remove("origin");
        data
    };
    assert_eq!(ours.map(without_origin).collect::<Vec<_>>(), events);
    assert!(whole.iter().any(|frame| frame.kind == "key-issued"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_goes_on_when_the_server_is_back() {
    let mut house = house().await;
    let id = house.submit(json!({})).await;
    let logs = |key: &str| {
        let mut command = program();
        command.args(["tasks", "logs", &id, "--follow", "--server", &house.api.base]).env("ORCHESTRA_KEY", key);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let stranger = logs("orc_live_nobody").wait_with_output().await.unwrap();
    let told = String::from_utf8(stranger.stderr).unwrap();
    assert!(!stranger.status.success() && told.contains(&house.api.base), "which server that was: {told}");

    let terminal = logs(house.api.key());
    house.event_after(&id, Some(40), |frame| frame.kind == "tool-called").await;
    house.kill().await;
    tokio::time::sleep(AWAY).await;
    house.restart().await;
    let output = tokio::time::timeout(PATIENCE, terminal.wait_with_output()).await.expect("it ends").unwrap();
    let (shown, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{told}");
    for once in [" created ", " succeeded"] {
        assert_eq!(shown.matches(once).count(), 1, "{once}: {shown}");
    }
    assert_eq!(told.matches("trying again").count(), 1, "{told}");
}
