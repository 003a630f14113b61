-- Campaigns: what was asked for, which never changes and may be large, beside what it stands at, which is small.
CREATE TABLE campaigns (
    id         BLOB    NOT NULL PRIMARY KEY, -- the UUID's 16 bytes
    created_at INTEGER NOT NULL,             -- microseconds since 1970
    team       TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    open       INTEGER NOT NULL,             -- 1 while a task runs or waits
    spec       TEXT    NOT NULL,
    summary    TEXT    NOT NULL,             -- the same without the repositories, for lists
    document   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX campaigns_by_creation ON campaigns (created_at, id);
CREATE INDEX campaigns_by_team     ON campaigns (team, created_at, id);
CREATE INDEX campaigns_by_status   ON campaigns (status, created_at, id);
CREATE INDEX campaigns_open        ON campaigns (id) WHERE open = 1;

-- What a campaign has cost is the sum of its tasks. No task of a campaign was folded before these columns were there.
ALTER TABLE tasks ADD COLUMN cost_nano_usd     INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN refunded_nano_usd INTEGER NOT NULL DEFAULT 0;

CREATE INDEX tasks_campaign_costs ON tasks (campaign, cost_nano_usd, refunded_nano_usd) WHERE campaign IS NOT NULL;

-- No campaign happened before this either: its projection begins where the others are.
INSERT INTO checkpoints (projection, position) SELECT 'campaigns', MIN(position) FROM checkpoints;
