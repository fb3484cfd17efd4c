-- Whose a task is, how it ranks and how large its file is; and its turn among those of the same priority.
ALTER TABLE task ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE task ADD COLUMN priority INTEGER NOT NULL DEFAULT 5;
ALTER TABLE task ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE task ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
-- What was queued before keeps its order.
UPDATE task SET turn = id;

CREATE INDEX task_turn ON task (priority DESC, turn, id, ready_ms);
-- The bound is `SMALL_FILE_BYTES`.
CREATE INDEX task_small ON task (priority DESC, turn, id, ready_ms) WHERE size_bytes <= 1048576;
CREATE INDEX task_owner ON task (priority, owner, turn);
