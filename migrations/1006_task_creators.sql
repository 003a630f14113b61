-- Who asked for a task. Task documents know it too; they are folded anew from the log.
ALTER TABLE tasks ADD COLUMN created_by TEXT; -- key_…, the id of a person, or campaign_…
CREATE INDEX tasks_by_creator ON tasks (created_by, created_at, id) WHERE created_by IS NOT NULL;

DELETE FROM tasks;
DELETE FROM usage;
DELETE FROM campaigns;
UPDATE checkpoints SET position = 0, skipped = 0 WHERE projection IN ('tasks', 'usage', 'campaigns');
