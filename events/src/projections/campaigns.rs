//! The list of campaigns, and each one's detail with what its tasks have cost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params_from_iter};

use super::bounds::{self, Columns};
use super::tasks::{Cursor, MAX_PAGE};
use super::{Folded, Odd, ReadModelError};
use crate::campaign::event::MAX_REPOS;
use crate::campaign::{CampaignEvent, CampaignResource, CampaignSpec, CampaignStatus};
use crate::envelope::Envelope;
use crate::id::CampaignId;
use crate::key::Bounds;
use crate::money::NanoUsd;
use crate::task::TaskResource;

/// Which campaigns. What is set must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CampaignFilter {
    /// The team.
    pub team: Option<String>,
    /// Where they stand.
    pub status: Option<CampaignStatus>,
    /// Within these, all of their repositories included.
    pub bounds: Bounds,
}

/// The parts of a campaign's row that a key can be bound to. They are few rows, so that the texts may be looked into.
const COLUMNS: Columns = Columns {
    project: "(c.summary ->> '$.template.project')",
    environment: "(c.summary ->> '$.template.environment')",
    task_type: "(c.summary ->> '$.template.taskType')",
    model: "(c.summary ->> '$.template.model')",
    repos: &["(SELECT json_group_array(value ->> '$.repo') FROM json_each(c.spec, '$.repos'))"],
};

/// A campaign with what was asked for and what it has cost.
#[derive(Debug, Clone, PartialEq)]
pub struct CampaignRow {
    /// Where it stands.
    pub campaign: CampaignResource,
    /// What was asked for. Its repositories only where the campaign is read alone: they may be a thousand.
    pub spec: CampaignSpec,
    /// What its tasks have cost.
    pub cost: NanoUsd,
    /// What of it is not billed.
    pub refunded: NanoUsd,
}

/// Campaigns, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct CampaignPage {
    /// The campaigns.
    pub campaigns: Vec<CampaignRow>,
    /// Where the next page starts; `None` when there is none.
    pub next: Option<Cursor>,
}

/// The columns of a [`CampaignRow`], with what was asked for out of this one. The id in the tasks' rows is text, as everywhere where it is a reference.
fn columns(spec: &str) -> String {
    format!(
        "c.document, c.{spec}, \
         (SELECT COALESCE(SUM(t.cost_nano_usd), 0) FROM tasks t WHERE t.campaign = c.document ->> '$.id'), \
         (SELECT COALESCE(SUM(t.refunded_nano_usd), 0) FROM tasks t WHERE t.campaign = c.document ->> '$.id') \
         FROM campaigns c"
    )
}

fn row(row: &Row<'_>) -> Result<CampaignRow, ReadModelError> {
    fn decode<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, ReadModelError> {
        let text = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
        serde_json::from_str(text)
            .map_err(|error| ReadModelError::Failed(format!("a campaign row does not read: {error}")))
    }
    Ok(CampaignRow {
        campaign: decode(row, 0)?,
        spec: decode(row, 1)?,
        cost: NanoUsd::from_nanos(row.get(2)?),
        refunded: NanoUsd::from_nanos(row.get(3)?),
    })
}

pub(super) fn find(connection: &Connection, id: CampaignId) -> Result<Option<CampaignRow>, ReadModelError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {} WHERE c.id = ?1", columns("spec")))?;
    let mut rows = statement.query([id.uuid().as_bytes()])?;
    rows.next()?.map(row).transpose()
}

/// The tasks of a campaign, those of the first repositories first. Those that were never begun are none yet.
pub(super) fn children(connection: &Connection, id: CampaignId) -> Result<Vec<TaskResource>, ReadModelError> {
    let sql = format!("SELECT document FROM tasks WHERE campaign = ?1 ORDER BY created_at, id LIMIT {MAX_REPOS}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id.to_string()])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.push(super::tasks::decode(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
    }
    Ok(tasks)
}

/// Every campaign of which a task runs or waits.
pub(super) fn open(connection: &Connection) -> Result<Vec<CampaignId>, ReadModelError> {
    let mut statement = connection.prepare_cached("SELECT id FROM campaigns WHERE open = 1 ORDER BY id")?;
    let ids = statement.query_map([], |row| row.get::<_, [u8; 16]>(0))?;
    ids.map(|id| Ok(CampaignId::from_uuid(uuid::Uuid::from_bytes(id?)))).collect()
}

pub(super) fn page(
    connection: &Connection,
    filter: &CampaignFilter,
    after: Option<Cursor>,
    limit: usize,
) -> Result<CampaignPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut sql = format!("SELECT {} WHERE 1 = 1", columns("summary"));
    let mut values: Vec<Value> = Vec::new();
    let status = filter.status.map(|status| status.as_str().to_owned());
    for (clause, text) in [("c.team", filter.team.clone()), ("c.status", status)] {
        if let Some(text) = text {
            values.push(Value::Text(text));
            // Writing to a String does not fail.
            let _ = write!(sql, " AND {clause} = ?{}", values.len());
        }
    }
    if let Some(cursor) = after {
        values.extend(cursor.values());
        let _ = write!(sql, " AND (c.created_at, c.id) < (?{}, ?{})", values.len() - 1, values.len());
    }
    bounds::narrow(&mut sql, &mut values, &filter.bounds, &COLUMNS);
    // One more than asked for tells whether there is another page.
    let _ = write!(sql, " ORDER BY c.created_at DESC, c.id DESC LIMIT {}", limit + 1);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut campaigns = Vec::new();
    let mut more = false;
    while let Some(found) = rows.next()? {
        if campaigns.len() == limit {
            more = true;
            break;
        }
        campaigns.push(row(found)?);
    }
    let next = campaigns
        .last()
        .filter(|_| more)
        .map(|last: &CampaignRow| Cursor::new(last.campaign.created_at.as_microsecond(), last.campaign.id.uuid()));
    Ok(CampaignPage { campaigns, next })
}

/// The campaigns that a batch touches, read once and written once.
#[derive(Default)]
pub(super) struct OpenCampaigns {
    campaigns: HashMap<CampaignId, Option<CampaignResource>>,
}

impl OpenCampaigns {
    pub fn apply(&mut self, transaction: &Transaction<'_>, envelope: &Envelope, event: &CampaignEvent) -> Folded {
        let Some(id) = envelope.stream.campaign_id() else { return Ok(Ok(())) };
        let current = match self.campaigns.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut statement = transaction.prepare_cached("SELECT document FROM campaigns WHERE id = ?1")?;
                let document: Option<String> =
                    statement.query_row([id.uuid().as_bytes()], |row| row.get(0)).optional()?;
                match document.as_deref().map(serde_json::from_str).transpose() {
                    Ok(campaign) => place.insert(campaign),
                    Err(error) => return Ok(Err(Odd::Document(error))),
                }
            }
        };
        let folded = CampaignResource::fold(current.take(), envelope, event);
        *current = folded;
        let Some(campaign) = current else { return Ok(Err(Odd::NoTask)) };
        if let CampaignEvent::CampaignCreated(spec) = event {
            let summary = CampaignSpec { repos: Vec::new(), ..(**spec).clone() };
            let texts = serde_json::to_string(spec)
                .and_then(|spec| Ok((spec, serde_json::to_string(&summary)?, serde_json::to_string(campaign)?)));
            let (spec_text, summary, document) = match texts {
                Ok(texts) => texts,
                Err(error) => return Ok(Err(Odd::Document(error))),
            };
            transaction
                .prepare_cached(
                    "INSERT INTO campaigns (id, created_at, team, status, open, spec, summary, document)
                     VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7)
                     ON CONFLICT (id) DO NOTHING",
                )?
                .execute((
                    id.uuid().as_bytes(),
                    campaign.created_at.as_microsecond(),
                    &spec.template.team,
                    campaign.status.as_str(),
                    spec_text,
                    summary,
                    document,
                ))?;
        }
        if let CampaignEvent::CampaignContentErased { .. } = event {
            let spec: Option<String> = transaction
                .prepare_cached("SELECT spec FROM campaigns WHERE id = ?1")?
                .query_row([id.uuid().as_bytes()], |row| row.get(0))
                .optional()?;
            let texts = serde_json::from_str::<CampaignSpec>(spec.as_deref().unwrap_or_default()).and_then(|spec| {
                let spec = spec.without_words();
                let text = serde_json::to_string(&spec)?;
                Ok((text, serde_json::to_string(&CampaignSpec { repos: Vec::new(), ..spec })?))
            });
            let (spec, summary) = match texts {
                Ok(texts) => texts,
                Err(error) => return Ok(Err(Odd::Document(error))),
            };
            transaction.prepare_cached("UPDATE campaigns SET spec = ?2, summary = ?3 WHERE id = ?1")?.execute((
                id.uuid().as_bytes(),
                spec,
                summary,
            ))?;
        }
        Ok(Ok(()))
    }

    pub fn save(self, transaction: &Transaction<'_>) -> Result<(), ReadModelError> {
        let mut statement = transaction.prepare_cached(
            "UPDATE campaigns SET status = ?2, open = ?3, document = ?4, finished_at = ?5, erased = ?6 WHERE id = ?1",
        )?;
        for campaign in self.campaigns.into_values().flatten() {
            let document =
                serde_json::to_string(&campaign).map_err(|error| ReadModelError::Failed(error.to_string()))?;
            statement.execute((
                campaign.id.uuid().as_bytes(),
                campaign.status.as_str(),
                !campaign.is_over(),
                document,
                campaign.finished_at.map(Timestamp::as_microsecond),
                campaign.erased_at.is_some(),
            ))?;
        }
        Ok(())
    }
}
