-- What retention looks for: ended tasks and campaigns whose words are still there, the oldest first.
CREATE INDEX tasks_to_erase ON tasks (finished_at, team) WHERE erased = 0 AND finished_at IS NOT NULL;

ALTER TABLE campaigns ADD COLUMN finished_at INTEGER; -- microseconds since 1970; NULL while it goes on
ALTER TABLE campaigns ADD COLUMN erased      INTEGER NOT NULL DEFAULT 0;

CREATE INDEX campaigns_to_erase ON campaigns (finished_at, team) WHERE erased = 0 AND finished_at IS NOT NULL;
