-- How often the key of each leg was rotated: the relay derives it again from that.

ALTER TABLE tunnels ADD COLUMN source_rotations INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tunnels ADD COLUMN destination_rotations INTEGER NOT NULL DEFAULT 0;
