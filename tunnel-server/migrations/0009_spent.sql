-- How much of its byte limit counts as spent when the server starts anew.
ALTER TABLE tunnels ADD COLUMN spent_bytes INTEGER;
