INSERT INTO orcheo_db.installation
       (installation_id, orcheo_version, backend_version, bootstrap_digest, tables)
VALUES (%(installation_id)s, %(orcheo_version)s, %(backend_version)s, %(bootstrap_digest)s, %(tables)s)
    ON CONFLICT (only_row) DO UPDATE SET
       installation_id = excluded.installation_id,
       orcheo_version = excluded.orcheo_version,
       backend_version = excluded.backend_version,
       bootstrap_digest = excluded.bootstrap_digest,
       tables = excluded.tables,
       applied_at = now()
