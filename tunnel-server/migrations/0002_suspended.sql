-- Devices in quarantine and operators who are disabled, until somebody lifts it.

CREATE TABLE suspended (
    identity TEXT PRIMARY KEY,
    reason TEXT,
    suspended_by TEXT NOT NULL,
    suspended_at INTEGER NOT NULL
) STRICT;
