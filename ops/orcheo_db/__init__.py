"""orcheo-db: production PostgreSQL for Orcheo, one spec, every target."""

__version__ = "0.1.0"
