"""Where the database tier runs: one abstract base, one module a target."""
