//! A task's events as a terminal shows them: a line each, and what is being said or done right now below.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use orchestra_events::NanoUsd;
use orchestra_events::task::resource;
use serde_json::Value;

use crate::client::Event;

/// Longest piece of text in a line, in characters.
const WIDTH: usize = 110;

/// A typed failure: code, message, hint.
type Failed = (String, String, String);

/// The progress of one task.
pub struct Progress {
    bar: Option<ProgressBar>,
    spoken: String,
    harness: bool,
    cost: NanoUsd,
    end: Option<Result<(), Failed>>,
}

impl Progress {
    /// With a live line at the bottom, when there is a terminal to show it on.
    pub fn live() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {wide_msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, ..Self::plain() }
    }

    /// Lines only.
    pub fn plain() -> Self {
        Self { bar: None, spoken: String::new(), harness: false, cost: NanoUsd::ZERO, end: None }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => super::say(line),
        }
    }

    fn now(&self, words: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(shorten(words));
        }
    }

    /// Shows an event. Whether it was the last.
    pub fn see(&mut self, event: &Event) -> bool {
        if event.kind == "delta" {
            self.spoken.push_str(event.data["text"].as_str().unwrap_or_default());
            let last = self.spoken.lines().last().unwrap_or_default().to_owned();
            self.now(&last);
            return false;
        }
        self.spoken.clear();
        let data = &event.data["data"];
        match &*event.kind {
            "tokens-charged" => self.cost += nano_usd(data),
            "model-called" => self.now(&format!("{} is thinking", data["model"].as_str().unwrap_or_default())),
            "tool-called" => self.now(&activity(data)),
            _ => {}
        }
        // The built-in agent's message names its tools; a harness's does not.
        self.harness |= event.kind == "harness-started";
        let told = match &*event.kind {
            "model-called" | "harness-read" | "sandbox-usage" => false,
            "tool-called" => self.harness,
            _ => true,
        };
        if told {
            self.line(&line(&event.data));
        }
        let failed = |code: &str, message: &str, hint: &str| Some(Err((code.into(), message.into(), hint.into())));
        self.end = match &*event.kind {
            "succeeded" => Some(Ok(())),
            "cancelled" => failed("cancelled", "The task was cancelled.", ""),
            "failed" => {
                let field = |name: &str| data["failure"][name].as_str().unwrap_or_default();
                failed(field("code"), field("message"), field("hint"))
            }
            _ => None,
        };
        if self.end.is_some()
            && let Some(bar) = self.bar.take()
        {
            bar.finish_and_clear();
        }
        self.end.is_some()
    }

    /// What the task cost, in dollars.
    pub fn cost(&self) -> String {
        format!("${}", self.cost)
    }

    /// Success, or the typed failure on standard error.
    pub fn exit_code(&self) -> ExitCode {
        match &self.end {
            Some(Ok(())) => ExitCode::SUCCESS,
            Some(Err((code, message, hint))) => {
                eprintln!("orchestra: {code}: {message} {hint}");
                ExitCode::FAILURE
            }
            None => ExitCode::FAILURE,
        }
    }
}

fn nano_usd(data: &Value) -> NanoUsd {
    NanoUsd::from_nanos(data["costNanoUsd"].as_i64().unwrap_or_default())
}

fn shorten(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= WIDTH { text } else { text.chars().take(WIDTH - 1).chain(['…']).collect() }
}

fn activity(data: &Value) -> String {
    resource::activity(data["name"].as_str().unwrap_or_default(), &data["input"])
}

/// One event as a line.
pub fn line(envelope: &Value) -> String {
    let data = &envelope["data"];
    let text = |name: &str| data[name].as_str().unwrap_or_default();
    let short = |name: &str| text(name).get(..12).unwrap_or_default();
    let kind = envelope["type"].as_str().unwrap_or_default();
    let words = match kind {
        "created" => text("task").to_owned(),
        "cloned" => format!("{} {} at {}", text("repo"), text("base"), short("commit")),
        "sandbox-started" => format!("in {} ms", data["startMs"]),
        "sandbox-usage" => {
            format!(
                "{} MiB of memory, {} ms of CPU time",
                data["memoryBytes"].as_u64().unwrap_or(0) >> 20,
                data["cpuMs"]
            )
        }
        "operator-entered" => format!("{} ran {}", text("operator"), text("program")),
        "tokens-charged" => {
            let usage = &data["usage"];
            format!("{} in, {} out, ${}", usage["inputTokens"], usage["outputTokens"], nano_usd(data))
        }
        "message" => data["content"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|block| match block["type"].as_str() {
                Some("text") => block["text"].as_str().map(str::to_owned),
                Some("tool-use") => Some(activity(block)),
                _ => None,
            })
            .collect::<Vec<_>>()
            .join(" · "),
        "tool-called" => activity(data),
        "tool-finished" => {
            let first = text("output").lines().next().unwrap_or_default();
            let took = data["durationMs"].as_u64().map_or_else(String::new, |ms| format!(" in {ms} ms"));
            format!("{}{took}: {first}", text("outcome"))
        }
        "committed" => {
            let (files, plus, minus) = (&data["files"], &data["insertions"], &data["deletions"]);
            format!("{} ({files} files, +{plus} -{minus})", short("commit"))
        }
        "pushed" => format!("{} → {}", short("commit"), text("branch")),
        "unchanged" | "pull-request-linked" | "reported" => text("repo").to_owned(),
        "pull-request-opened" => text("url").to_owned(),
        "pull-request-omitted" => text("reason").to_owned(),
        "forge-noted" => format!("without {}: {}", text("feature"), text("detail")),
        "egress-decided" => {
            let entries = data["decisions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let told = entries.iter().filter(|entry| entry["count"] != 0).map(|entry| {
                let field = |name: &str| entry[name].as_str().unwrap_or_default();
                let because = entry["reason"].as_str().map_or_else(String::new, |reason| format!(" ({reason})"));
                format!("{} {}:{}{because}", field("verdict"), field("host"), entry["port"])
            });
            told.collect::<Vec<_>>().join(", ")
        }
        "call-retried" => {
            format!("call {} failed ({}); again in {} ms", data["attempt"], text("class"), data["waitMs"])
        }
        "setup-started" => format!("running {}", data["repos"].to_string().replace(['[', ']', '"'], "")),
        "setup-finished" => {
            let how = match (data["cached"].as_bool(), data["done"].as_bool()) {
                (Some(true), _) => "was there",
                (_, Some(true)) => "made",
                _ => "failed",
            };
            format!("{how} in {} ms", data["durationMs"])
        }
        "harness-started" => format!("run {}", data["run"]),
        "harness-finished" => format!("run {} ended with code {}", data["run"], data["exitCode"]),
        "refund-granted" => {
            let amount = NanoUsd::from_nanos(data["nanoUsd"].as_i64().unwrap_or_default());
            format!("${amount} are not billed ({})", text("reason"))
        }
        "attempt-failed" => {
            let field = |name: &str| data["failure"][name].as_str().unwrap_or_default();
            format!("{}: {} Another one begins in {} ms.", field("code"), field("message"), data["waitMs"])
        }
        "retry-scheduled" => format!("in {} ms", data["waitMs"]),
        "step-failed" | "model-call-failed" | "failed" => {
            let field = |name: &str| data["failure"][name].as_str().unwrap_or_default();
            format!("{}: {}", field("code"), field("message"))
        }
        "credentials-required" => format!("missing: {}", data["missing"]),
        _ => String::new(),
    };
    let time = envelope["time"].as_str().and_then(|time| time.get(11..19)).unwrap_or_default();
    shorten(&format!("{time} {kind:<20} {words}")).trim_end().to_owned()
}
