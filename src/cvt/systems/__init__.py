"""The systems, one short file each: rows, published facts, sources."""
