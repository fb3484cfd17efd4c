-- The order in which running analyses claimed a key: the first one has it. Claims of before come first.
ALTER TABLE analysis ADD COLUMN claim_order INTEGER NOT NULL DEFAULT 0;
