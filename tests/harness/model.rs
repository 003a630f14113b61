//! The scripted model as a process of its own: it outlives the server and counts what it was asked.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::PATIENCE;
use super::process::{log, program};

/// A running model.
pub struct Model {
    /// Where it listens.
    pub url: String,
    _child: Child,
}

/// What it was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Requests(pub Vec<Value>);

impl Model {
    /// Starts it with this script.
    pub async fn start(house: &Path, script: &Value) -> Self {
        let file = house.join("script.json");
        std::fs::write(&file, script.to_string()).unwrap();
        let mut child = program()
            .arg("scripted-model")
            .arg("--script")
            .arg(file)
            .arg("--log")
            .arg(house.join("model.jsonl"))
            .stdout(Stdio::piped())
            .stderr(log(&house.join("model.log")))
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("the model starts in time");
        Self {
            url: url.unwrap().unwrap_or_else(|| {
                panic!("the model ended: {}", std::fs::read_to_string(house.join("model.log")).unwrap())
            }),
            _child: child,
        }
    }

    /// Waits until it was asked so often.
    pub async fn asked(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.requests().await.len() < times {
            assert!(Instant::now() < deadline, "the model was not asked {times} times");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it was asked so far.
    pub async fn requests(&self) -> Requests {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let answer = client.get(format!("{}/requests", self.url)).send().await.unwrap();
        Requests(answer.json().await.unwrap())
    }
}

impl Requests {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The turns that were asked for, in order.
    pub fn turns(&self) -> Vec<u64> {
        self.0.iter().map(|request| request["turn"].as_u64().unwrap()).collect()
    }

    /// What the provider would bill, summed over all requests.
    pub fn billed(&self, count: &str) -> u64 {
        self.0.iter().filter_map(|request| request["usage"][count].as_u64()).sum()
    }

    /// What that costs in nano-dollars.
    pub fn cost(&self) -> u64 {
        self.0.iter().map(|request| cost_of(&request["usage"])).sum()
    }
}

/// What this usage costs in nano-dollars at the published price of the tests' model: 3 dollars per million tokens in, 15
/// out, a tenth for what is read from the cache, a quarter more for what is written to it.
pub fn cost_of(usage: &Value) -> u64 {
    let tokens = |name: &str| usage[name].as_u64().unwrap_or(0);
    tokens("inputTokens") * 3_000
        + tokens("outputTokens") * 15_000
        + tokens("cacheReadTokens") * 300
        + tokens("cacheWrite5mTokens") * 3_750
        + tokens("cacheWrite1hTokens") * 6_000
}

/// How the log names a key.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
