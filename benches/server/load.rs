//! Requests at a steady pace or one after the other, and the disk's own pace beside them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::process::Server;

/// The lengths of many waits, in milliseconds.
pub struct Latencies(Vec<f64>);

impl Latencies {
    pub fn new(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut millis: Vec<_> = times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect();
        millis.sort_by(f64::total_cmp);
        Self(millis)
    }

    /// The wait that this share of them does not exceed.
    pub fn at(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share) as usize]
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// A request as a caller writes it, about 700 bytes long. With a key of its own, so that it can begin; without, so
/// that it waits for one.
pub fn task(number: usize, key: bool) -> Value {
    let mut body = json!({
        "repo": "acme/api", "model": "claude-sonnet-4-6", "team": "platform", "project": "infra",
        "task": format!("Bump the provider of module {number}. {}", "Update breaking calls, and run the tests. ".repeat(9)),
        "budget": { "maxUsd": 2.0 }, "metadata": { "ticket": format!("OPS-{number}") },
    });
    if key {
        body["credentials"] = json!({ "model": { "apiKey": format!("sk-bench-{number:032}") } });
    }
    body
}

async fn post(client: &Client, url: &str, key: &str, body: Vec<u8>) {
    let request = client.post(url).bearer_auth(key).header("content-type", "application/json").body(body);
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(status, StatusCode::ACCEPTED, "{text}");
}

/// Submits so many tasks a second for a while, whatever the answers take. A wait counts from the moment a request
/// was due, so that a server which holds up the next request does not hide it.
pub async fn submit_paced(server: &Server, key: &str, per_second: u32, time: Duration) -> Vec<Duration> {
    let (client, url) = (Client::new(), server.url("/v1/tasks"));
    let count = (time.as_secs_f64() * f64::from(per_second)) as usize;
    let bodies: Vec<_> = (0..count).map(|number| task(number, false).to_string().into_bytes()).collect();
    let (due, mut dues) = mpsc::channel(count);
    // A thread that sleeps is more punctual than a timer wheel of milliseconds.
    let pacer = std::thread::spawn(move || {
        let start = Instant::now() + Duration::from_millis(20);
        for (number, body) in bodies.into_iter().enumerate() {
            let at = start + Duration::from_secs(1) * number as u32 / per_second;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            due.blocking_send((at, body)).unwrap();
        }
    });
    let mut waits = Vec::with_capacity(count);
    while let Some((at, body)) = dues.recv().await {
        let (client, url, key) = (client.clone(), url.clone(), key.to_owned());
        waits.push(tokio::spawn(async move {
            post(&client, &url, &key, body).await;
            at.elapsed()
        }));
    }
    pacer.join().unwrap();
    let mut times = Vec::with_capacity(count);
    for wait in waits {
        times.push(wait.await.unwrap());
    }
    times
}

/// Appends of 700 bytes to a bare file at the same pace, each with its `fdatasync`: what the disk itself takes.
pub fn append_paced(folder: &Path, per_second: u32, time: Duration) -> Vec<Duration> {
    let mut file = File::options().create(true).append(true).open(folder.join("bare.log")).unwrap();
    let count = (time.as_secs_f64() * f64::from(per_second)) as u32;
    let start = Instant::now();
    (0..count)
        .map(|number| {
            let at = start + Duration::from_secs(1) * number / per_second;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            file.write_all(&[b'.'; 700]).unwrap();
            file.sync_data().unwrap();
            at.elapsed()
        })
        .collect()
}

/// Submits tasks as fast as this many callers at once get answers.
pub async fn submit_many(server: &Server, key: &str, bodies: impl Iterator<Item = Value>, callers: usize) {
    let (client, url) = (Client::new(), server.url("/v1/tasks"));
    let slots = std::sync::Arc::new(Semaphore::new(callers));
    let mut calls = Vec::new();
    for body in bodies {
        let slot = std::sync::Arc::clone(&slots).acquire_owned().await.unwrap();
        let (client, url, key) = (client.clone(), url.clone(), key.to_owned());
        calls.push(tokio::spawn(async move {
            post(&client, &url, &key, body.to_string().into_bytes()).await;
            drop(slot);
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
}

/// Reads these addresses one after the other on one connection.
pub async fn read_each(server: &Server, key: &str, paths: impl Iterator<Item = String>) -> Latencies {
    let client = Client::new();
    let mut times = Vec::new();
    for path in paths {
        let began = Instant::now();
        let answer = client.get(server.url(&path)).bearer_auth(key).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.bytes().await.unwrap();
        times.push(began.elapsed());
    }
    Latencies::new(times)
}

/// How many tasks have this status, read page by page.
pub async fn count(server: &Server, key: &str, status: &str) -> usize {
    let client = Client::new();
    let (mut found, mut cursor) = (0, String::new());
    loop {
        let url = server.url(&format!("/v1/tasks?limit=200&status={status}{cursor}"));
        let page: Value = client.get(url).bearer_auth(key).send().await.unwrap().json().await.unwrap();
        found += page["data"].as_array().unwrap().len();
        let Some(next) = page["nextCursor"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}
