"""The one-shot job that makes a PostgreSQL server ready for Orcheo: `python -m orcheo_db.bootstrap [--json]`.

Roles, memberships, the database, grants, extensions, then the app's own twelve schema bootstraps one after
another, under one lock, and a check that everything is there. Idempotent; safe to kill and to run several
times at once. It runs inside the `orcheo` image, takes everything from the environment and mounted files (see
`job`), and imports of the toolkit only `errors` and `database`.

    job         what it is told: environment, secrets
    session     what its steps share: connections, what was left out
    guard       one job at a time
    recognise   what is there already, before anything changes
    roles, objects, pooler, extensions   one group of steps each
    app         the app's own bootstraps
    expected    which tables a release makes; the check afterwards
    installation, report   what it leaves behind and prints
"""
