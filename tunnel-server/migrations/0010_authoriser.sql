-- What the fleet's own authoriser said of a tunnel, as {name: value}; none where it was not asked.
ALTER TABLE tunnels ADD COLUMN authoriser TEXT;
