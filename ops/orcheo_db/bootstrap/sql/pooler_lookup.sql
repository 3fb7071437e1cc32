-- PgBouncer's auth_query where no first boot of the own postgres image made it (compose/images/postgres/superuser.sql has the same
-- function). Roles with more power than an application's never log in through the pooler.
CREATE SCHEMA IF NOT EXISTS orcheo_pooler;
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
REVOKE ALL ON FUNCTION orcheo_pooler.user_lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA orcheo_pooler TO {pooler};
GRANT EXECUTE ON FUNCTION orcheo_pooler.user_lookup(text) TO {pooler};
GRANT CONNECT ON DATABASE {database} TO {pooler};
