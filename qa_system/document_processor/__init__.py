"""Documents read, cut into chunks, and kept as vectors."""
