-- Sealed; there only as long as the analysis is unfinished.
ALTER TABLE analysis ADD COLUMN passwords BLOB CHECK (passwords IS NULL OR state < 2);
