//! The sandboxes' way out: which hosts a task may connect to, the proxies that are open, and every decision in the task's
//! own stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orchestra_events::SandboxId;
use orchestra_events::task::command::Command;
use orchestra_events::task::egress::{EgressDecision, EgressRest, EgressVerdict, MAX_EGRESS_ENTRIES};
use orchestra_events::task::state::Task;
use orchestra_runtime::egress::{
    Batch, Bytes, Decision, Egress, Entry, Limits, Lost, Network, Pattern, Policy, Reason, Resolve, Sink,
    SystemResolver, Verdict, expand, is_within, serve, variables,
};
use orchestra_runtime::sandbox::{Sandbox, SandboxError};

use super::{Failed, Workshop};
use crate::task::Recorder;

/// Threads that move the sandboxes' bytes, apart from those that decide and remember.
const THREADS: usize = 2;

/// Once an attempt's stream has as many entries as it may have, the number of the rest is written so often.
const REST_EVERY: Duration = Duration::from_secs(300);

/// What a server or a team says about hosts.
#[derive(Debug, Clone, Default)]
pub struct HostLists {
    /// What a task may connect to that asks for nothing.
    pub allow: Vec<Entry>,
    /// What a task may ask for besides; nothing when absent.
    pub permit: Option<Vec<Entry>>,
}

/// What is said of one team in place of a server's [`HostLists`]: what is allowed, and what may be asked for besides.
pub type TeamLists = (Option<Vec<Entry>>, Option<Vec<Entry>>);

/// Looks up the hosts that the package managers of the named image are configured for.
pub type Registries = Arc<dyn Fn(&str) -> BTreeSet<String> + Send + Sync>;

/// What the operator says about the sandboxes' way out.
#[derive(Clone)]
pub struct EgressRules {
    /// For every team that has no list of its own.
    pub server: HostLists,
    /// What single teams have in its place, each list by itself.
    pub teams: BTreeMap<String, TeamLists>,
    /// Networks that are open although they are private, reserved or the like.
    pub networks: Vec<Network>,
    /// How much a task may move.
    pub limits: Limits,
    /// The hosts that an image's package managers are configured for.
    pub registries: Registries,
    /// Who knows addresses.
    pub resolver: Arc<dyn Resolve>,
}

impl Default for EgressRules {
    /// Nothing is allowed.
    fn default() -> Self {
        Self {
            server: HostLists::default(),
            teams: BTreeMap::new(),
            networks: Vec::new(),
            limits: Limits::default(),
            registries: Arc::new(|_| BTreeSet::new()),
            resolver: Arc::new(SystemResolver),
        }
    }
}

/// An entry of a task's list that it may not have: its place in the list, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The place in the list.
    pub place: usize,
    /// Why.
    pub detail: String,
}

impl EgressRules {
    fn of(&self, team: &str) -> (&[Entry], &[Entry]) {
        let (allow, permit) = self.teams.get(team).map_or((&None, &None), |(allow, permit)| (allow, permit));
        let allow = allow.as_ref().unwrap_or(&self.server.allow);
        let permit = permit.as_ref().or(self.server.permit.as_ref());
        (allow, permit.map_or(&[], Vec::as_slice))
    }

    /// The list of a task of this team on this image: what it asks for within what it may have, or else what is allowed
    /// to every such task.
    ///
    /// # Errors
    /// Every entry that is none, or that the task may not have.
    pub fn effective(&self, team: &str, image: &str, asked: Option<&[String]>) -> Result<Vec<String>, Vec<Refused>> {
        let (allow, permit) = self.of(team);
        let Some(asked) = asked else { return Ok(allow.iter().map(ToString::to_string).collect()) };
        let ceiling: Vec<Entry> = allow.iter().chain(permit).cloned().collect();
        let registries = (self.registries)(image);
        let (mut list, mut refused) = (BTreeSet::new(), Vec::new());
        for (place, text) in asked.iter().enumerate() {
            match text.parse::<Entry>() {
                Ok(entry) if is_within(&entry, &ceiling, &registries) => {
                    list.insert(entry.to_string());
                }
                Ok(_) => {
                    let detail = format!("is not among the hosts that team {team:?} may ask for");
                    refused.push(Refused { place, detail });
                }
                Err(error) => refused.push(Refused { place, detail: error.to_string() }),
            }
        }
        if refused.is_empty() { Ok(list.into_iter().collect()) } else { Err(refused) }
    }

    /// What the sandbox of a task may do. A list that no longer reads allows that much less.
    pub fn policy(&self, task: &Task) -> Policy {
        let list: Vec<Entry> = task.spec.egress.iter().filter_map(|text| text.parse().ok()).collect();
        Policy {
            allow: self.hosts(&list, &task.spec.image),
            networks: self.networks.clone(),
            limits: self.limits.clone(),
            spent: Bytes { received: task.egress.bytes_in, sent: task.egress.bytes_out },
            resolver: Arc::clone(&self.resolver),
        }
    }

    fn hosts(&self, list: &[Entry], image: &str) -> Vec<Pattern> {
        let word = list.contains(&Entry::PackageRegistries);
        let registries = if word { (self.registries)(image) } else { BTreeSet::new() };
        expand(list, &registries)
    }

    /// The variables of every command in the task's sandbox. None where there is no way out.
    pub fn variables(&self, task: &Task) -> Vec<(String, String)> {
        if self.policy(task).allow.is_empty() { Vec::new() } else { variables() }
    }

    /// The same for a sandbox of this image that is nobody's yet. Looks into the image when nobody has before: it blocks.
    pub fn usual_variables(&self, image: &str) -> Vec<(String, String)> {
        if self.hosts(&self.server.allow, image).is_empty() { Vec::new() } else { variables() }
    }
}

/// Writes decisions into a task's stream.
struct IntoStream {
    recorder: Recorder,
    state: Mutex<Written>,
}

struct Written {
    entries: usize,
    rest: EgressRest,
    rest_told: Instant,
}

fn decision(decision: Decision) -> EgressDecision {
    let Decision { host, port, verdict, count, bytes } = decision;
    let reason = verdict.reason().map(Reason::code).map(str::to_owned);
    let verdict = match verdict {
        Verdict::Allowed => EgressVerdict::Allowed,
        Verdict::Refused(_) => EgressVerdict::Refused,
        Verdict::Failed(_) => EgressVerdict::Failed,
    };
    EgressDecision { host, port, verdict, reason, count, bytes_in: bytes.received, bytes_out: bytes.sent }
}

impl IntoStream {
    fn new(recorder: Recorder, task: &Task) -> Self {
        let written = Written { entries: task.egress.entries, rest: EgressRest::default(), rest_told: Instant::now() };
        Self { recorder, state: Mutex::new(written) }
    }

    fn state(&self) -> MutexGuard<'_, Written> {
        // Plain numbers: whoever panicked while holding it left them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn record(&self, decisions: Vec<EgressDecision>, rest: EgressRest) -> Result<(), Lost> {
        let recorded = self.recorder.record(Command::RecordEgress { decisions, rest }).await;
        recorded.map_err(|error| {
            tracing::debug!(%error, "connections of a sandbox are not recorded");
            Lost
        })
    }

    /// The command's parts for a batch; `None` while only numbers grow.
    fn part(&self, batch: Batch) -> Option<(Vec<EgressDecision>, EgressRest)> {
        let mut state = self.state();
        state.rest.add(batch.omitted, batch.omitted_bytes.received, batch.omitted_bytes.sent);
        let mut decisions: Vec<_> = batch.decisions.into_iter().map(decision).collect();
        let room = MAX_EGRESS_ENTRIES.saturating_sub(state.entries).min(decisions.len());
        for over in decisions.drain(room..) {
            state.rest.add(over.count, over.bytes_in, over.bytes_out);
        }
        if decisions.is_empty() && state.rest_told.elapsed() < REST_EVERY {
            return None;
        }
        state.entries += decisions.len();
        state.rest_told = Instant::now();
        Some((decisions, std::mem::take(&mut state.rest)))
    }

    /// Writes the number of what is not listed.
    async fn finish(&self) {
        let rest = std::mem::take(&mut self.state().rest);
        if rest != EgressRest::default() && self.record(Vec::new(), rest).await.is_err() {
            tracing::warn!("the number of a sandbox's further connections is not recorded");
        }
    }
}

#[async_trait]
impl Sink for IntoStream {
    async fn take_down(&self, batch: Batch) -> Result<(), Lost> {
        match self.part(batch) {
            Some((decisions, rest)) => self.record(decisions, rest).await,
            None if self.recorder.is_connected() => Ok(()),
            None => Err(Lost),
        }
    }
}

struct Open {
    egress: Egress,
    sink: Arc<IntoStream>,
}

/// The proxies that are open, by sandbox.
pub struct EgressDesk {
    rules: EgressRules,
    open: Mutex<HashMap<SandboxId, Open>>,
    /// `None` only while it is dropped.
    threads: Option<tokio::runtime::Runtime>,
}

impl Drop for EgressDesk {
    fn drop(&mut self) {
        // A runtime that is dropped waits, which nobody may do on a thread of another one.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

impl EgressDesk {
    /// By these rules, with threads of its own.
    ///
    /// # Errors
    /// When the host gives no threads.
    pub fn new(rules: EgressRules) -> std::io::Result<Self> {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("egress")
            .enable_all()
            .build()?;
        Ok(Self { rules, open: Mutex::default(), threads: Some(threads) })
    }

    /// What the operator says.
    pub fn rules(&self) -> &EgressRules {
        &self.rules
    }

    fn open_now(&self) -> MutexGuard<'_, HashMap<SandboxId, Open>> {
        // Entries are put in and taken out whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sandbox's way out is served, with its decisions going into a stream that somebody keeps.
    fn is_served(&self, sandbox: SandboxId) -> bool {
        self.open_now().get(&sandbox).is_some_and(|open| open.egress.is_running() && open.sink.recorder.is_connected())
    }

    /// Serves the sandbox's way out, unless that is done already or there is none.
    ///
    /// # Errors
    /// When the sandbox is gone, or something in it has taken the port.
    pub async fn open(&self, task: &Task, sandbox: &Arc<dyn Sandbox>, recorder: &Recorder) -> Result<(), SandboxError> {
        let (id, policy) = (sandbox.id(), self.rules.policy(task));
        let Some(threads) = self.threads.as_ref().filter(|_| !policy.allow.is_empty() && !self.is_served(id)) else {
            return Ok(());
        };
        self.close(id).await;
        let sink = Arc::new(IntoStream::new(recorder.clone(), task));
        let (inside, into) = (Arc::clone(sandbox), Arc::clone(&sink));
        let serving = threads.spawn(async move { serve(&*inside, policy, into).await });
        let served = serving.await.unwrap_or_else(|error| {
            Err(SandboxError::Unresponsive { id, detail: format!("its way out is not served: {error}") })
        });
        if let Some(egress) = served? {
            self.open_now().insert(id, Open { egress, sink });
        }
        Ok(())
    }

    /// Cuts the sandbox's way out and writes down what is left to be.
    pub async fn close(&self, sandbox: SandboxId) {
        let closing = self.open_now().remove(&sandbox);
        if let Some(Open { egress, sink }) = closing {
            egress.end().await;
            sink.finish().await;
        }
    }

    /// What has moved through the sandbox's proxy since this process serves it, if it does.
    pub fn bytes(&self, sandbox: SandboxId) -> Option<Bytes> {
        self.open_now().get(&sandbox).map(|open| open.egress.bytes())
    }
}

impl Workshop {
    /// Sees to it that the attempt's sandbox has its way out: another process may have begun it.
    pub(super) async fn keep_egress(&self, task: &Task, recorder: &Recorder) -> Result<(), Failed> {
        let Some(id) = task.current().and_then(|attempt| attempt.sandbox) else { return Ok(()) };
        if task.spec.egress.is_empty() || self.egress.is_served(id) {
            return Ok(());
        }
        // Whoever needs it finds out that it is gone.
        let Some(sandbox) = self.sandboxes.attach(id).await? else { return Ok(()) };
        Ok(self.egress.open(task, &sandbox, recorder).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<Entry> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rules() -> EgressRules {
        EgressRules {
            server: HostLists { allow: list(&["package-registries"]), permit: Some(list(&["*.wide.example"])) },
            teams: BTreeMap::from([
                ("own".to_owned(), (Some(list(&["own.example"])), None)),
                ("closed".to_owned(), (Some(Vec::new()), Some(Vec::new()))),
            ]),
            registries: Arc::new(|image| BTreeSet::from([format!("{image}.registry.example")])),
            ..EgressRules::default()
        }
    }

    #[test]
    fn a_task_gets_what_it_asks_for_within_what_its_team_may_have() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        for (team, asked, expected) in [
            ("any", None, Ok(&["package-registries"][..])),
            ("any", Some(&[][..]), Ok(&[])),
            ("any", Some(&["base.registry.example"]), Ok(&["base.registry.example"])),
            ("any", Some(&["other.registry.example"]), Err(vec![0])),
            ("any", Some(&["a.wide.example", "evil.example"]), Err(vec![1])),
            ("any", Some(&["A.Wide.example", "a.wide.example"]), Ok(&["a.wide.example"])),
            ("any", Some(&["10.0.0.1", "*", "http://x"]), Err(vec![0, 1, 2])),
            ("own", None, Ok(&["own.example"])),
            ("own", Some(&["package-registries"]), Err(vec![0])),
            ("own", Some(&["a.wide.example"]), Ok(&["a.wide.example"])),
            ("closed", None, Ok(&[])),
            ("closed", Some(&["a.wide.example"]), Err(vec![0])),
        ] {
            let asked = asked.map(texts);
            let found = rules().effective(team, "base", asked.as_deref());
            let places = |refused: Vec<Refused>| refused.iter().map(|refused| refused.place).collect::<Vec<_>>();
            assert_eq!(found.map_err(places), expected.map(texts), "{team} {asked:?}");
        }
        assert_eq!(EgressRules::default().effective("any", "base", None), Ok(Vec::new()));
    }
}
