-- Webhooks, and the newest of their deliveries: one row per message, as its last attempt left it. The log keeps them all.
CREATE TABLE webhooks (
    id         BLOB    NOT NULL PRIMARY KEY, -- the UUID's 16 bytes
    created_at INTEGER NOT NULL,             -- microseconds since 1970
    team       TEXT    NOT NULL,             -- a star for those of the operators
    document   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX webhooks_by_creation ON webhooks (created_at, id);
CREATE INDEX webhooks_by_team     ON webhooks (team, created_at, id);

CREATE TABLE deliveries (
    webhook  BLOB    NOT NULL,
    place    INTEGER NOT NULL, -- when the message was first recorded: that event's position, and the place within it
    message  BLOB    NOT NULL, -- the UUID's 16 bytes
    outcome  TEXT    NOT NULL,
    document TEXT    NOT NULL,
    PRIMARY KEY (webhook, place)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX deliveries_by_message ON deliveries (webhook, message);
CREATE INDEX deliveries_by_outcome ON deliveries (webhook, outcome, place);

-- No webhook was there before this: its projection begins where the others are.
INSERT INTO checkpoints (projection, position) SELECT 'webhooks', MIN(position) FROM checkpoints;
