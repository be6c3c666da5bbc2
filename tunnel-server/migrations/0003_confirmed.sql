-- Of a tunnel that was cut: 1 while its device has not confirmed it, 2 when that has raised an alarm, 0 otherwise.

ALTER TABLE tunnels ADD COLUMN unconfirmed INTEGER NOT NULL DEFAULT 0;

CREATE INDEX tunnels_unconfirmed ON tunnels (expires_at) WHERE unconfirmed > 0;
