-- What retention looks for: ended tasks and campaigns whose words are still there, the oldest first.
ALTER TABLE tasks ADD COLUMN finished_at INTEGER; -- microseconds since 1970; NULL while it goes on
ALTER TABLE tasks ADD COLUMN erased      INTEGER NOT NULL DEFAULT 0;

UPDATE tasks SET finished_at = unixepoch(document ->> '$.finishedAt') * 1000000
WHERE document ->> '$.finishedAt' IS NOT NULL;

CREATE INDEX tasks_to_erase ON tasks (finished_at, team) WHERE erased = 0 AND finished_at IS NOT NULL;

ALTER TABLE campaigns ADD COLUMN finished_at INTEGER;
ALTER TABLE campaigns ADD COLUMN erased      INTEGER NOT NULL DEFAULT 0;

UPDATE campaigns SET finished_at = unixepoch(document ->> '$.finishedAt') * 1000000
WHERE document ->> '$.finishedAt' IS NOT NULL;

CREATE INDEX campaigns_to_erase ON campaigns (finished_at, team) WHERE erased = 0 AND finished_at IS NOT NULL;
