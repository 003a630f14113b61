//! Asks an index where its files lie, which only it knows: cargo's has a file that says so, npm's and pip's name an address
//! with each file. Nothing but a host's name is taken from an answer.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde_json::Value;

use super::host;

/// How long one index may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// Most indexes that are asked for one image.
const MAX_QUESTIONS: usize = 8;
/// Largest answer.
const MAX_ANSWER: usize = 8 << 20;

/// What to ask of which index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A registry of npm: where does a package lie that every one has?
    Npm(String),
    /// A simple index: where do the files of a project lie that every one has?
    Pip(String),
    /// A sparse index: where are crates downloaded?
    Cargo(String),
}

/// What was said.
#[derive(Debug, Default)]
pub struct Answers {
    /// Hosts.
    pub hosts: BTreeSet<String>,
    /// Indexes that said nothing.
    pub silent: BTreeSet<String>,
}

impl Question {
    /// The address to ask. None where there is no way to ask.
    fn address(&self) -> Option<Url> {
        let (index, path) = match self {
            Self::Npm(index) => (index.as_str(), "npm/latest"),
            Self::Pip(index) => (index.as_str(), "pip/"),
            Self::Cargo(index) => (index.strip_prefix("sparse+")?, "config.json"),
        };
        let url = Url::parse(&format!("{}/{path}", index.trim_end_matches('/'))).ok()?;
        // Over a line that nobody else writes on, and to no name and password that an image brings along.
        (url.scheme() == "https" && url.username().is_empty() && url.password().is_none()).then_some(url)
    }

    fn hosts(&self, answer: &[u8]) -> Option<BTreeSet<String>> {
        // Each kind has fields of the same name that mean something else.
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let base = self.address()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let addresses: Vec<String> = match self {
            Self::Npm(_) => text(&answer["dist"]["tarball"]).into_iter().collect(),
            Self::Pip(_) => answer["files"].as_array()?.iter().filter_map(|file| text(&file["url"])).collect(),
            // The address is a template; its host is not.
            Self::Cargo(_) => {
                text(&answer["dl"]).into_iter().map(|dl| dl.split('{').next().unwrap_or_default().to_owned()).collect()
            }
        };
        Some(addresses.iter().filter_map(|address| host(base.join(address).ok()?.as_str())).collect())
    }
}

async fn ask(client: &Client, question: &Question) -> Result<BTreeSet<String>, Option<String>> {
    let Some(url) = question.address() else { return Ok(BTreeSet::new()) };
    let silent = || url.host_str().map(str::to_owned);
    let request = client.get(url.clone()).header("Accept", "application/vnd.pypi.simple.v1+json, application/json");
    let response = request.send().await.and_then(reqwest::Response::error_for_status);
    let mut response = response.map_err(|_| silent())?;
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| silent())? {
        if answer.len() + chunk.len() > MAX_ANSWER {
            return Err(silent());
        }
        answer.extend_from_slice(&chunk);
    }
    question.hosts(&answer).ok_or_else(silent)
}

/// Asks all of them at once, and waits a few seconds at most.
pub fn ask_all(mut questions: Vec<Question>) -> Answers {
    questions.truncate(MAX_QUESTIONS);
    questions.retain(|question| question.address().is_some());
    if questions.is_empty() {
        return Answers::default();
    }
    let all: BTreeSet<String> =
        questions.iter().filter_map(|question| question.address()?.host_str().map(str::to_owned)).collect();
    // On a thread of its own: whoever calls may be within a runtime already, or not.
    let asked = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let client = Client::builder().timeout(PATIENCE).redirect(Policy::none());
        let client = client.user_agent(concat!("orchestra/", env!("CARGO_PKG_VERSION"))).build().ok()?;
        Some(runtime.block_on(join_all(questions.iter().map(|question| ask(&client, question)))))
    });
    let Ok(Some(asked)) = asked.join() else { return Answers { hosts: BTreeSet::new(), silent: all } };
    let mut answers = Answers::default();
    for answer in asked {
        match answer {
            Ok(hosts) => answers.hosts.extend(hosts),
            Err(silent) => answers.silent.extend(silent),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(question: &Question, answer: &str) -> Vec<String> {
        question.hosts(answer.as_bytes()).expect("reads").into_iter().collect()
    }

    #[test]
    fn each_kind_of_index_is_asked_in_its_own_way() {
        let cargo = Question::Cargo("sparse+https://index.example/".to_owned());
        assert_eq!(cargo.address().expect("one").as_str(), "https://index.example/config.json");
        assert_eq!(names(&cargo, r#"{"dl":"https://files.example/{crate}/{version}","api":"x"}"#), ["files.example"]);
        let npm = Question::Npm("https://npm.example".to_owned());
        assert_eq!(
            names(&npm, r#"{"files":["bin"],"dist":{"tarball":"https://cdn.example:8443/npm.tgz"}}"#),
            ["cdn.example:8443"]
        );
        let pip = Question::Pip("https://pip.example/simple".to_owned());
        assert_eq!(pip.address().expect("one").as_str(), "https://pip.example/simple/pip/");
        let answer = r#"{"files":[{"url":"https://a.example/x"},{"url":"../y"},{"url":"ftp://b.example/"}]}"#;
        assert_eq!(names(&pip, answer), ["a.example", "pip.example"]);
    }

    #[test]
    fn nobody_is_asked_without_encryption_or_with_a_password() {
        for index in ["http://pip.example/simple", "https://me:secret@pip.example/simple", "nonsense", ""] {
            assert_eq!(Question::Pip(index.to_owned()).address(), None, "{index}");
        }
        assert_eq!(Question::Cargo("https://git.example/index".to_owned()).address(), None);
    }
}
