-- What only a superuser may do, done once by the temporary server of a first boot (node.py), over the local socket.
-- Everything else is the init job's, as orcheo_admin. Idempotent: an adopted volume, or an image whose copy of this file
-- is newer, gets it again.
--
-- PostgreSQL 14 and later: hosts that Ansible runs have their distribution's.
-- psql variable: secrets = the directory with <role>.scram, each one line: SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>.
-- The verifiers come through the shell's standard output into psql, so no process list and no log ever shows them.
\set ON_ERROR_STOP on
\set VERBOSITY terse
\set QUIET on
SET client_min_messages = warning;
SET log_statement = none;
SET log_min_error_statement = panic;

SELECT :SERVER_VERSION_NUM >= 150000 AS since15, :SERVER_VERSION_NUM >= 160000 AS since16 \gset
\if :since15
\set backup_functions 'pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal(), pg_create_restore_point(text)'
\else
\set backup_functions 'pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean), pg_switch_wal(), pg_create_restore_point(text)'
\endif

\set admin_verifier `cat :'secrets'/orcheo_admin.scram`
\set monitor_verifier `cat :'secrets'/orcheo_monitor.scram`
\set replicator_verifier `cat :'secrets'/replicator.scram`
\set backup_verifier `cat :'secrets'/orcheo_backup.scram`
\set pgbouncer_verifier `cat :'secrets'/pgbouncer.scram`

BEGIN;

SELECT format('CREATE ROLE %I', name)
  FROM unnest(ARRAY['orcheo_admin', 'orcheo_monitor', 'orcheo_backup', 'replicator', 'pgbouncer']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

ALTER ROLE postgres PASSWORD NULL;
ALTER ROLE orcheo_admin WITH LOGIN NOSUPERUSER CREATEDB CREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'admin_verifier';
ALTER ROLE orcheo_monitor WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'monitor_verifier';
ALTER ROLE orcheo_backup WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'backup_verifier';
ALTER ROLE replicator WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE REPLICATION NOBYPASSRLS PASSWORD :'replicator_verifier';
ALTER ROLE pgbouncer WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'pgbouncer_verifier';

GRANT pg_monitor TO orcheo_monitor;
GRANT pg_monitor TO orcheo_admin WITH ADMIN OPTION;
-- The administrator may change these two passwords (rotation) without acting as them. Not replicator's: a replication
-- login copies the whole cluster, which is more than the administrator may read. (Before 16, CREATEROLE alone is enough for that.)
\if :since16
GRANT orcheo_monitor, pgbouncer TO orcheo_admin WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;

-- reserved_connections: when the app has taken all others, the administrator and the monitoring still get in.
GRANT pg_use_reserved_connections TO orcheo_admin, orcheo_monitor, orcheo_backup;
\endif

-- pgBackRest reads settings, `backup check` the state of archiving, the drills every table; the functions for both are granted below, in each database.
GRANT pg_monitor, pg_read_all_data TO orcheo_backup;

REVOKE ALL ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO orcheo_admin, orcheo_monitor, orcheo_backup, pgbouncer;

-- PgBouncer's auth_query. Roles with more power than an application's never log in through the pooler.
CREATE SCHEMA IF NOT EXISTS orcheo_pooler AUTHORIZATION postgres;
REVOKE ALL ON SCHEMA orcheo_pooler FROM PUBLIC;
CREATE OR REPLACE FUNCTION orcheo_pooler.user_lookup(username text)
    RETURNS TABLE (uname text, phash text)
    LANGUAGE sql STABLE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT rolname::text, rolpassword
      FROM pg_authid
     WHERE rolname = username
       AND rolcanlogin AND NOT rolsuper AND NOT rolreplication AND NOT rolcreaterole
       AND rolpassword LIKE 'SCRAM-SHA-256$%'
       AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
$$;
ALTER FUNCTION orcheo_pooler.user_lookup(text) OWNER TO postgres;
REVOKE ALL ON FUNCTION orcheo_pooler.user_lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA orcheo_pooler TO pgbouncer;
GRANT EXECUTE ON FUNCTION orcheo_pooler.user_lookup(text) TO pgbouncer;

COMMIT;

-- Functions' grants are a database's own: here, in the template (so in every later database), in the app's database where it is.
GRANT EXECUTE ON FUNCTION :backup_functions TO orcheo_backup;

SELECT coalesce((SELECT datname FROM pg_database WHERE datdba = to_regrole('orcheo') ORDER BY oid LIMIT 1), 'template1') AS app_database \gset

-- Not a trusted extension, so the database's owner could not create it: databases get it from the template.
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
\connect template1
\set QUIET on
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
GRANT EXECUTE ON FUNCTION :backup_functions TO orcheo_backup;
\connect :"app_database"
\set QUIET on
GRANT EXECUTE ON FUNCTION :backup_functions TO orcheo_backup;
