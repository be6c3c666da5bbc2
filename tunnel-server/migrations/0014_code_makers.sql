-- Who made the code; nobody knows of those from before.
ALTER TABLE enrol_codes ADD COLUMN made_by TEXT;
