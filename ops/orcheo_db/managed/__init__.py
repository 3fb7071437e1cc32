"""A cloud's own PostgreSQL, by the cloud's own command line: restore drills (`orcheo-db --target external drill INSTANCE`)."""
