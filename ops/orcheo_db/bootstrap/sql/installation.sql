-- Who prepared this database and with what. Exactly one row; PgBouncer's health check and `doctor` read it.
CREATE SCHEMA IF NOT EXISTS orcheo_db;
CREATE TABLE IF NOT EXISTS orcheo_db.installation (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    installation_id   text NOT NULL,
    orcheo_version    text NOT NULL,
    backend_version   text NOT NULL,
    bootstrap_digest  text NOT NULL,
    tables            integer NOT NULL,
    applied_at        timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON SCHEMA orcheo_db FROM PUBLIC;
GRANT USAGE ON SCHEMA orcheo_db TO {monitor}, {reader};
GRANT SELECT ON orcheo_db.installation TO {monitor}, {reader};
-- What the drills write: a marker before and one after the moment that they prove (backup/drill.py). The role exists where this
-- toolkit backs the server up; elsewhere the owner of the app's tables does it (managed/drill.py).
CREATE TABLE IF NOT EXISTS orcheo_db.drill_markers (
    drill  text NOT NULL,
    phase  text NOT NULL CHECK (phase IN ('before', 'after')),
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (drill, phase)
);
DO $$ BEGIN
  IF to_regrole('orcheo_backup') IS NOT NULL THEN
    GRANT USAGE ON SCHEMA orcheo_db TO orcheo_backup;
    GRANT SELECT, INSERT, DELETE ON orcheo_db.drill_markers TO orcheo_backup;
  ELSE
    GRANT USAGE ON SCHEMA orcheo_db TO {owner};
    GRANT SELECT ON orcheo_db.installation TO {owner};
    GRANT SELECT, INSERT, DELETE ON orcheo_db.drill_markers TO {owner};
  END IF;
END $$;
