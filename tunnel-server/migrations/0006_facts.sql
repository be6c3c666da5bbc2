-- Facts: what owners have set, as {name: {value, at, by}}, and what the device said last, as {name: value}.
ALTER TABLE devices ADD COLUMN asserted_facts TEXT NOT NULL DEFAULT '{}';
ALTER TABLE devices ADD COLUMN reported_facts TEXT NOT NULL DEFAULT '{}';
ALTER TABLE devices ADD COLUMN reported_at INTEGER;

-- Counts up with each change of what decisions are made from: one that was made from less is made anew.
ALTER TABLE devices ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operators ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;

-- What a tunnel is weighed anew with. Tunnels of before have the age that they had, and no limits.
ALTER TABLE tunnels ADD COLUMN certified_at INTEGER;
ALTER TABLE tunnels ADD COLUMN approval TEXT;
ALTER TABLE tunnels ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
