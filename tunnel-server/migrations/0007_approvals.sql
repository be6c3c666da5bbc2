-- Approvals: who asks for what, and who has agreed, as [{by, at}].

CREATE TABLE approvals (
    id BLOB PRIMARY KEY,
    requester TEXT NOT NULL,
    devices TEXT NOT NULL,
    services TEXT NOT NULL,
    reason TEXT NOT NULL,
    window_secs INTEGER NOT NULL,
    -- Where it was asked for from.
    source TEXT NOT NULL,
    needed INTEGER NOT NULL,
    approvers TEXT NOT NULL,
    state TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    -- While it is pending, when it is decided at the latest; then the end of the window.
    expires_at INTEGER NOT NULL,
    ended_by TEXT,
    end_reason TEXT
) STRICT;

CREATE INDEX approvals_by_time ON approvals (asked_at);
CREATE INDEX approvals_of_requester ON approvals (requester, expires_at);

-- Whether a tunnel was opened without the approvals that policy asks for.
ALTER TABLE tunnels ADD COLUMN break_glass INTEGER NOT NULL DEFAULT 0;

CREATE INDEX tunnels_break_glass ON tunnels (opened_at) WHERE break_glass > 0;
