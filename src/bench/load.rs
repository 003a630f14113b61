//! Questions to a running server, and how long the answers took: throughput of single reads, and the tails of pages at any
//! depth. The yardstick in the same run is `/healthz`, which asks nobody and reads nothing.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use serde_json::Value;

use crate::client::Client;

/// Connections that ask at the same time where throughput is measured.
const CALLERS: usize = 16;
/// Tasks that single reads are spread over.
const SAMPLE: usize = 4_000;
/// Most answers whose length is kept for one question.
const MOST_ANSWERS: usize = 1_000_000;

/// How long answers took, in milliseconds.
struct Latencies(Vec<f64>);

impl Latencies {
    fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        // Within the list: a share is at most 1.
        self.0.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

/// The processor time of a process so far, all of its threads together (`/proc/PID/task/*/schedstat`, proc(5)).
fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0_u64;
    let folder = format!("/proc/{pid}/task");
    for thread in std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // A thread may end while the others are read.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}

/// Asks for paths in turn with so many callers at once for a while.
async fn ask(client: &Client, paths: &[String], callers: usize, time: Duration) -> anyhow::Result<Latencies> {
    let began = Instant::now();
    let one = |number: usize| async move {
        let path = &paths[number % paths.len()];
        let began = Instant::now();
        client.get_bytes(path).await.with_context(|| format!("GET {path}"))?;
        anyhow::Ok(began.elapsed())
    };
    let (mut asked, mut waits) = (0, Vec::new());
    let mut open = FuturesUnordered::new();
    while asked < callers {
        open.push(one(asked));
        asked += 1;
    }
    while let Some(wait) = open.next().await {
        waits.push(wait?.as_secs_f64() * 1e3);
        if began.elapsed() < time && waits.len() < MOST_ANSWERS {
            open.push(one(asked));
            asked += 1;
        }
    }
    waits.sort_by(f64::total_cmp);
    Ok(Latencies(waits))
}

/// The ids of tasks at even distances through the whole list.
async fn sample(client: &Client, ends: (Timestamp, Timestamp)) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    let steps = i64::try_from(SAMPLE / 100)?;
    for step in 0..steps {
        let page = client.get(&format!("/v1/tasks?limit=100&cursor={}", cursor_at(ends, step, steps))).await?;
        let ids = page["data"].as_array().into_iter().flatten().filter_map(|task| task["id"].as_str());
        paths.extend(ids.map(|id| format!("/v1/tasks/{id}")));
    }
    anyhow::ensure!(!paths.is_empty(), "the server has no tasks: seed it first");
    Ok(paths)
}

/// A cursor so many steps back from the newest task. Its shape is the server's own business; this is the server's own bench.
fn cursor_at((newest, oldest): (Timestamp, Timestamp), step: i64, steps: i64) -> String {
    let back = (newest.as_microsecond() - oldest.as_microsecond()) / steps.max(1) * step;
    format!("{:016x}{:032x}", newest.as_microsecond() - back, u128::MAX)
}

fn created(page: &Value) -> anyhow::Result<Timestamp> {
    let text = page["data"][0]["createdAt"].as_str().context("the server has no tasks: seed it first")?;
    Ok(text.parse()?)
}

/// The pages that are asked for, with a name for each.
fn pages(ends: (Timestamp, Timestamp), some: &Value) -> Vec<(String, Vec<String>)> {
    let text = |name: &str| some[name].as_str().unwrap_or_default().to_owned();
    let (team, project, repo) = (text("team"), text("project"), text("repo"));
    let day = |back: i64| (ends.0 - Duration::from_secs(86_400) * u32::try_from(back).unwrap_or(0)).to_string();
    let month = format!("from={}&to={}", day(30), day(0));
    let at = |depth: i64| cursor_at(ends, depth, 100);
    let mut pages: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |name: &str, query: String| pages.push((name.to_owned(), vec![query]));
    add("tasks", "/v1/tasks?limit=50".to_owned());
    for depth in [10, 50, 90, 99] {
        add(&format!("tasks, {depth} % deep"), format!("/v1/tasks?limit=50&cursor={}", at(depth)));
    }
    let filters = [
        ("team", format!("team={team}")),
        ("project", format!("project={project}")),
        ("team and project", format!("team={team}&project={project}")),
        ("status", "status=failed".to_owned()),
        ("status of which there is none", "status=running".to_owned()),
        ("team and status", format!("team={team}&status=cancelled")),
        ("team and status of which there is none", format!("team={team}&status=running")),
        ("repository", format!("repo={repo}")),
        ("model", format!("model={}", text("model"))),
        ("team and model", format!("team={team}&model={}", text("model"))),
        ("a model that nobody uses", format!("team={team}&model=none")),
        ("customer", "customer=customer-7".to_owned()),
        ("team and customer", format!("team={team}&customer=customer-7")),
        ("project, status and model", format!("project={project}&status=failed&model={}", text("model"))),
    ];
    for (name, filter) in &filters {
        add(&format!("tasks by {name}"), format!("/v1/tasks?limit=50&{filter}"));
        add(&format!("tasks by {name}, 90 % deep"), format!("/v1/tasks?limit=50&{filter}&cursor={}", at(90)));
    }
    for (name, query) in [
        ("usage, total", String::new()),
        ("usage by team", "groupBy=team".to_owned()),
        ("usage by day", "groupBy=day".to_owned()),
        ("usage by customer and model", "groupBy=customer,model".to_owned()),
        ("usage of a month by team and day", format!("{month}&groupBy=team,day")),
        ("usage of a customer by team", "customer=customer-7&groupBy=team".to_owned()),
        ("usage of a team by project, model and day", format!("team={team}&groupBy=project,model,day")),
        ("usage of a month by team, project and model", format!("{month}&groupBy=team,project,model")),
    ] {
        add(name, format!("/v1/usage?{query}"));
    }
    for (name, query) in [
        ("audit", String::new()),
        ("audit of acts", "&category=act".to_owned()),
        ("audit of a team", format!("&team={team}")),
        ("audit of a team's failures", format!("&team={team}&outcome=failed")),
        ("audit of a repository", format!("&repo={repo}")),
        ("audit of a key", format!("&actor={}", text("createdBy"))),
    ] {
        add(name, format!("/v1/audit?limit=50{query}"));
        add(&format!("{name}, 90 % deep"), format!("/v1/audit?limit=50{query}&cursor={}", at(90)));
    }
    add("audit of a month", format!("/v1/audit?limit=50&{month}"));
    let in_month = format!("{:016x}{:032x}", (ends.0 - Duration::from_secs(27 * 86_400)).as_microsecond(), u128::MAX);
    add("audit of a month, 90 % of it deep", format!("/v1/audit?limit=50&{month}&cursor={in_month}"));
    add("bills of a team", format!("/v1/billing/periods?team={team}"));
    for (name, path) in [
        ("the dashboard's tasks", "/tasks".to_owned()),
        ("the dashboard's tasks of a team", format!("/tasks?team={team}")),
        ("the dashboard's usage", "/usage".to_owned()),
        ("the dashboard's usage of a team", format!("/usage?team={team}&by=customer")),
        ("the dashboard's audit", "/audit".to_owned()),
    ] {
        add(name, path);
    }
    pages
}

/// Asks everything and tells the figures.
pub async fn run(client: &Client, seconds: u64, pid: Option<u32>, tell: impl Fn(String)) -> anyhow::Result<()> {
    let time = Duration::from_secs(seconds);
    let newest = client.get("/v1/tasks?limit=1").await?;
    let some = newest["data"][0].clone();
    let newest = created(&newest)?;
    // The log is in the order of time: halving finds where it begins.
    let (mut low, mut high) = (0_i64, newest.as_second());
    while high - low > 3_600 {
        let middle = low + (high - low) / 2;
        let page = client.get(&format!("/v1/tasks?limit=1&createdBefore={}", Timestamp::from_second(middle)?)).await?;
        if page["data"].as_array().is_some_and(Vec::is_empty) { low = middle } else { high = middle }
    }
    let ends = (newest, Timestamp::from_second(low)?);
    let tasks = sample(client, ends).await?;

    tell(format!("{CALLERS} connections, {seconds} s each"));
    tell("| question | answers/s | p50 ms | p99 ms | answers per second of the server's processor |".to_owned());
    tell("| --- | --: | --: | --: | --: |".to_owned());
    for (name, paths) in [("`/healthz`", vec!["/healthz".to_owned()]), ("`/v1/tasks/{id}`", tasks)] {
        let (began, before) = (Instant::now(), pid.map(processor_time).transpose()?);
        let waits = ask(client, &paths, CALLERS, time).await?;
        let per_second = waits.0.len() as f64 / began.elapsed().as_secs_f64();
        let per_core = match (pid, before) {
            (Some(pid), Some(before)) => {
                let used = processor_time(pid)?.saturating_sub(before).as_secs_f64();
                format!("{:.0}", waits.0.len() as f64 / used)
            }
            _ => "–".to_owned(),
        };
        tell(format!("| {name} | {per_second:.0} | {:.2} | {:.2} | {per_core} |", waits.at(0.5), waits.at(0.99)));
    }

    tell(String::new());
    tell("One connection, one question after the other".to_owned());
    tell("| page | answers | p50 ms | p99 ms |".to_owned());
    tell("| --- | --: | --: | --: |".to_owned());
    for (name, paths) in pages(ends, &some) {
        match ask(client, &paths, 1, time).await {
            Ok(waits) => {
                tell(format!("| {name} | {} | {:.2} | {:.2} |", waits.0.len(), waits.at(0.5), waits.at(0.99)));
            }
            Err(error) => tell(format!("| {name} | – | {error:#} | |")),
        }
    }
    Ok(())
}
