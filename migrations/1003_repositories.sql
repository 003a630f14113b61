-- Task documents know the diffs of each of their repositories. They are folded anew from the log.
DELETE FROM usage;
DELETE FROM tasks;
UPDATE checkpoints SET position = 0, skipped = 0;
