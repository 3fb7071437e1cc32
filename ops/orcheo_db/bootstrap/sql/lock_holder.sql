SELECT a.pid, coalesce(host(a.client_addr), 'a local socket'),
       date_trunc('second', clock_timestamp() - a.backend_start)::text
  FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
   AND l.classid::bigint = {namespace} AND l.objid::bigint = {key}
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
