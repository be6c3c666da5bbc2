-- The commands that an approval is for, as [["/bin/program", "word"]], and nothing else then.
ALTER TABLE approvals ADD COLUMN commands TEXT;

-- The SHA-256 of the only batch of commands that a tunnel is for.
ALTER TABLE tunnels ADD COLUMN batch BLOB;
