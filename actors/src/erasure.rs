//! Erasing: the words of a task or a campaign go from every place they are in, because somebody asked for it or because
//! they are as old as the operator lets them become.
//!
//! An event in the stream promises it. Then the private parts of the stream's events are deleted, the blobs, and what is
//! left of a repository; the read models forget when they come to the event, and their file is written anew, since rows that
//! were moved in it leave copies behind. A mark on the disk stands from before the event until all of that is done:
//! whatever dies in between, the next start or the next sweep goes on.

mod marks;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use orchestra_events::campaign::{self, CampaignEvent, child_id};
use orchestra_events::projections::Ended;
use orchestra_events::store::Direction;
use orchestra_events::task::event::ErasureReason;
use orchestra_events::task::state::Phase;
use orchestra_events::task::{self, Refusal, Task};
use orchestra_events::{Actor as Who, CampaignId, StreamName, TaskId};

use crate::journal::{self, Loaded};
use crate::orchestra::Orchestra;
use crate::service::{Erased, ServiceError};

pub use marks::ErasureMarks;

/// Time between two sweeps.
pub const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);
/// Streams that are erased together: the log is cut once for all of them, and whoever else wants something erased waits.
pub const BATCH: usize = 100;
/// How long the read models may take to come to the events of an erasure.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Read models up to this size are written anew at once (about a second); larger ones by the sweep, once for all that was
/// erased since the last.
pub const TIDY_AT_ONCE: u64 = 128 * 1024 * 1024;

/// How long words are kept after a task or a campaign has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// In days; for teams that have no rule of their own. `None`: for ever.
    pub days: Option<u32>,
    /// The teams that have one.
    pub teams: BTreeMap<String, Option<u32>>,
}

impl Retention {
    /// The rules, each as: ended before this time, of this team or of none of those that have their own.
    fn rules(&self, now: Timestamp) -> Vec<Ended> {
        let before = |days: u32| now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok();
        let own = self.teams.iter().filter_map(|(team, days)| {
            Some(Ended { before: before((*days)?)?, team: Some(team.clone()), but: Vec::new() })
        });
        let others = self.days.and_then(before).map(|before| {
            let but = self.teams.keys().cloned().collect();
            Ended { before, team: None, but }
        });
        own.chain(others).collect()
    }
}

fn internal(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::Internal(error.to_string())
}

const fn has_ended(task: &Task) -> bool {
    matches!(task.phase, Phase::Ended(_))
}

impl Orchestra {
    /// Erases a task's words. Refused while it goes on; a repeat finishes what the first has left.
    pub(crate) async fn erase_task(&self, id: TaskId, who: Who) -> Result<Erased, ServiceError> {
        let _one = self.erasing.lock().await;
        let stream = StreamName::task(id);
        let loaded = self.ended_task(id).await?;
        if !self.store.keeps_apart(&stream).await? {
            return Err(ServiceError::Refused { refusal: Refusal::Inseparable, status: None });
        }
        let attempts = loaded.state.attempt;
        self.promise(id, &loaded, ErasureReason::Request, who).await?;
        if !self.finish(&[(stream, attempts)]).await {
            return Ok(Erased::UnderWay);
        }
        Ok(self.tidy_at_once().await)
    }

    /// Erases a campaign's words and those of its tasks. Refused while it, or one of them, goes on.
    pub(crate) async fn erase_campaign(&self, id: CampaignId, who: Who) -> Result<Erased, ServiceError> {
        {
            let _one = self.erasing.lock().await;
            let loaded =
                journal::load(&*self.store, id).await.map_err(internal)?.ok_or(ServiceError::NoSuchCampaign)?;
            if !loaded.state.finished {
                return Err(ServiceError::CampaignRefused(campaign::Refusal::StillOpen));
            }
            if !self.store.keeps_apart(&StreamName::campaign(id)).await? {
                return Err(ServiceError::CampaignRefused(campaign::Refusal::Inseparable));
            }
            for task in tasks_of(id, &loaded) {
                self.ended_task(task).await?;
            }
            self.promise_campaign(id, &loaded, ErasureReason::Request, who).await?;
        }
        // There may be a thousand tasks: the sweep goes through them.
        self.erasure_wanted.notify_one();
        Ok(Erased::UnderWay)
    }

    async fn ended_task(&self, id: TaskId) -> Result<Loaded<Task>, ServiceError> {
        let loaded = journal::load(&*self.store, id).await.map_err(internal)?.ok_or(ServiceError::NoSuchTask)?;
        if has_ended(&loaded.state) {
            return Ok(loaded);
        }
        Err(ServiceError::Refused { refusal: Refusal::StillOpen, status: None })
    }

    /// The mark, and then the event.
    async fn promise(
        &self,
        id: TaskId,
        loaded: &Loaded<Task>,
        reason: ErasureReason,
        who: Who,
    ) -> Result<(), ServiceError> {
        let (stream, marks) = (StreamName::task(id), &self.workshop.erasing);
        marks.set(&stream).await.map_err(internal)?;
        let command = task::Command::EraseContent { reason, events: loaded.revision.0 + 1 };
        let told = if loaded.state.erased { Ok(()) } else { self.tell(id, command, who).await };
        if told.is_err() {
            marks.clear(&[stream]).await.map_err(internal)?;
        }
        told
    }

    async fn promise_campaign(
        &self,
        id: CampaignId,
        loaded: &Loaded<campaign::Campaign>,
        reason: ErasureReason,
        who: Who,
    ) -> Result<(), ServiceError> {
        let (stream, marks) = (StreamName::campaign(id), &self.workshop.erasing);
        marks.set(&stream).await.map_err(internal)?;
        let command = campaign::Command::EraseContent { reason, events: loaded.revision.0 + 1 };
        let told = if loaded.state.erased { Ok(()) } else { self.tell_campaign(id, command, who).await };
        if told.is_err() {
            marks.clear(&[stream]).await.map_err(internal)?;
        }
        told
    }

    /// Does what was promised for these streams, the tasks' with their number of attempts. What does not go now is
    /// left to the sweep: the marks stand. Answers whether all of it went. The read models are to be tidied afterwards: at
    /// once where somebody waits for it, at the end of a sweep otherwise, since nothing is folded meanwhile.
    async fn finish(&self, promised: &[(StreamName, u32)]) -> bool {
        let finished = self.try_to_finish(promised).await;
        if let Err(error) = &finished {
            tracing::warn!(%error, streams = promised.len(), "an erasure is not done yet; the next sweep goes on");
        }
        finished.is_ok()
    }

    async fn try_to_finish(&self, promised: &[(StreamName, u32)]) -> Result<(), String> {
        let streams: Vec<_> = promised.iter().map(|(stream, _)| stream.clone()).collect();
        let events = self.store.erase(&streams).await.map_err(|error| error.to_string())?;
        for (stream, attempts) in promised {
            if let Some(task) = stream.task_id() {
                self.workshop.blobs.erase(task).await.map_err(|error| error.to_string())?;
                self.workshop.forget_leftovers(task, *attempts).await?;
            }
        }
        let head = self.store.head().await.map_err(|error| error.to_string())?;
        self.read.wait_for(head, CATCH_UP).await.map_err(|error| error.to_string())?;
        self.workshop.erasing.clear(&streams).await.map_err(|error| error.to_string())?;
        metrics::counter!("orchestra_erased_events_total").increment(events);
        tracing::info!(streams = streams.len(), events, "erased");
        Ok(())
    }

    /// Tidies the read models now, where that does not take long.
    async fn tidy_at_once(&self) -> Erased {
        let tidied = match self.read.bytes().await {
            Ok(bytes) if bytes > TIDY_AT_ONCE => return Erased::UnderWay,
            Ok(_) => self.tidy().await,
            Err(error) => Err(error.to_string()),
        };
        match tidied {
            Ok(()) => Erased::Done,
            Err(error) => {
                tracing::warn!(%error, "the read models are not tidied yet; the next sweep does it");
                Erased::UnderWay
            }
        }
    }

    async fn tidy(&self) -> Result<(), String> {
        self.read.tidy().await.map_err(|error| error.to_string())?;
        self.workshop.erasing.clear_tidy().await.map_err(|error| error.to_string())
    }

    /// Finishes what was promised and erases what is old enough: at once, every hour and whenever somebody asks. Ends
    /// with the server.
    pub async fn keep_forgetting(&self) {
        loop {
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "a sweep for words to be erased is put off");
            }
            let _ = tokio::time::timeout(SWEEP_EVERY, self.erasure_wanted.notified()).await;
        }
    }

    /// One sweep.
    pub async fn sweep(&self) -> Result<(), String> {
        self.go_on().await?;
        for rule in self.retention.rules(Timestamp::now()) {
            self.retire_tasks(&rule).await?;
            self.retire_campaigns(&rule).await?;
        }
        // The campaigns among them brought their tasks with them.
        self.go_on().await?;
        let (_, untidy) = self.workshop.erasing.list().await.map_err(|error| error.to_string())?;
        if untidy {
            self.tidy().await?;
        }
        Ok(())
    }

    /// Finishes what marks are there for.
    async fn go_on(&self) -> Result<(), String> {
        let (marked, _) = self.workshop.erasing.list().await.map_err(|error| error.to_string())?;
        for streams in marked.chunks(BATCH) {
            let _one = self.erasing.lock().await;
            let (mut promised, mut stale) = (Vec::with_capacity(BATCH), Vec::new());
            for stream in streams {
                // Whatever is the matter with one of them: its mark stands, and the others are not for it to hold up.
                let put_off =
                    |error: String| tracing::warn!(%stream, %error, "an erasure is put off until the next sweep");
                if let Some(campaign) = stream.campaign_id() {
                    if let Err(error) = self.finish_campaign(campaign, stream.clone()).await {
                        put_off(error);
                    }
                    continue;
                }
                let loaded = match stream.task_id() {
                    Some(task) => journal::load(&*self.store, task).await,
                    None => Ok(None),
                };
                let loaded = match loaded {
                    Ok(loaded) => loaded,
                    Err(error) => {
                        put_off(error.to_string());
                        continue;
                    }
                };
                match loaded.filter(|loaded| loaded.state.erased) {
                    Some(loaded) => promised.push((stream.clone(), loaded.state.attempt)),
                    // The event never came.
                    None => stale.push(stream.clone()),
                }
            }
            self.workshop.erasing.clear(&stale).await.map_err(|error| error.to_string())?;
            if !promised.is_empty() {
                self.finish(&promised).await;
            }
        }
        Ok(())
    }

    /// A campaign that is to be forgotten takes its tasks with it, for the reason and by the one that are in its event.
    async fn finish_campaign(&self, id: CampaignId, stream: StreamName) -> Result<(), String> {
        let loaded = journal::load(&*self.store, id).await.map_err(|error| error.to_string())?;
        let Some(loaded) = loaded.filter(|loaded| loaded.state.erased) else {
            return self.workshop.erasing.clear(&[stream]).await.map_err(|error| error.to_string());
        };
        let last = self.store.read_stream(&stream, None, Direction::Backwards, 1).await;
        let last = last.map_err(|error| error.to_string())?;
        let promised = last.first().and_then(|envelope| match CampaignEvent::decode(envelope) {
            Ok(Some(CampaignEvent::CampaignContentErased { reason, .. })) => Some((reason, envelope.actor.clone())),
            _ => None,
        });
        let (reason, who) = promised.unwrap_or((ErasureReason::Request, Who::system("erasure")));
        let mut promised = Vec::with_capacity(BATCH);
        let mut waits = false;
        for task in tasks_of(id, &loaded) {
            let Ok(loaded) = self.ended_task(task).await else {
                // It was begun again by itself, and is erased once that is over.
                waits = true;
                continue;
            };
            if let Err(error) = self.promise(task, &loaded, reason, who.clone()).await {
                tracing::warn!(%task, %error, "a task's words are not erased yet");
                waits = true;
                continue;
            }
            promised.push((StreamName::task(task), loaded.state.attempt));
            if promised.len() == BATCH {
                waits |= !self.finish(&std::mem::take(&mut promised)).await;
            }
        }
        if !promised.is_empty() {
            waits |= !self.finish(&promised).await;
        }
        if waits {
            return self.store.erase(&[stream]).await.map(drop).map_err(|error| error.to_string());
        }
        self.try_to_finish(&[(stream, 0)]).await
    }

    async fn retire_tasks(&self, rule: &Ended) -> Result<(), String> {
        let mut after = None;
        loop {
            let page = self.read.ended_tasks(rule.clone(), after, BATCH).await.map_err(|error| error.to_string())?;
            let Some(last) = page.last().copied() else { return Ok(()) };
            after = Some(last);
            let _one = self.erasing.lock().await;
            let mut promised = Vec::with_capacity(page.len());
            for (_, id) in page {
                let id = TaskId::from_uuid(id);
                // What was begun again since, the read models will know of.
                let Ok(loaded) = self.ended_task(id).await else { continue };
                if !self.store.keeps_apart(&StreamName::task(id)).await.map_err(|error| error.to_string())? {
                    continue;
                }
                let who = Who::system("retention");
                match self.promise(id, &loaded, ErasureReason::Retention, who).await {
                    Ok(()) => promised.push((StreamName::task(id), loaded.state.attempt)),
                    Err(error) => tracing::warn!(task = %id, %error, "a task's words are not erased yet"),
                }
            }
            if !promised.is_empty() {
                self.finish(&promised).await;
            }
        }
    }

    async fn retire_campaigns(&self, rule: &Ended) -> Result<(), String> {
        let mut after = None;
        loop {
            let page =
                self.read.ended_campaigns(rule.clone(), after, BATCH).await.map_err(|error| error.to_string())?;
            let Some(last) = page.last().copied() else { return Ok(()) };
            after = Some(last);
            let _one = self.erasing.lock().await;
            for (_, id) in page {
                let id = CampaignId::from_uuid(id);
                let loaded = match journal::load(&*self.store, id).await {
                    Ok(loaded) => loaded,
                    Err(error) => {
                        tracing::warn!(campaign = %id, %error, "a campaign does not read and keeps its words");
                        continue;
                    }
                };
                let Some(loaded) = loaded.filter(|loaded| loaded.state.finished) else { continue };
                if !self.store.keeps_apart(&StreamName::campaign(id)).await.map_err(|error| error.to_string())? {
                    continue;
                }
                let who = Who::system("retention");
                if let Err(error) = self.promise_campaign(id, &loaded, ErasureReason::Retention, who).await {
                    tracing::warn!(campaign = %id, %error, "a campaign's words are not erased yet");
                }
            }
        }
    }
}

/// The tasks of a campaign that were ever begun.
fn tasks_of(id: CampaignId, loaded: &Loaded<campaign::Campaign>) -> HashSet<TaskId> {
    loaded.state.indexed().filter(|(_, child)| child.run > 0).map(|(index, _)| child_id(id, index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_s_own_rule_stands_for_the_common_one() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        let teams = BTreeMap::from([("kept".to_owned(), None), ("short".to_owned(), Some(1))]);
        let rules = Retention { days: Some(30), teams }.rules(now);
        let short = Ended { before: now - SignedDuration::from_hours(24), team: Some("short".to_owned()), but: vec![] };
        let but = vec!["kept".to_owned(), "short".to_owned()];
        let others = Ended { before: now - SignedDuration::from_hours(720), team: None, but };
        assert_eq!(rules, [short, others]);
        assert!(Retention::default().rules(now).is_empty());
    }
}
