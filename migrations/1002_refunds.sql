-- What is not billed, beside what it cost; and task documents that know their open calls one by one. Both are folded
-- anew from the log.
ALTER TABLE usage ADD COLUMN refunded_nano_usd INTEGER NOT NULL DEFAULT 0;
DELETE FROM usage;
DELETE FROM tasks;
UPDATE checkpoints SET position = 0, skipped = 0;
