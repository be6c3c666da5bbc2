-- Where a control link over UDP was last, while it is believed to be up: to tell the device when the server was started anew.
ALTER TABLE devices ADD COLUMN linked_from TEXT;
