SELECT c.relname::text
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = {owner}::regrole
   AND NOT (i.indisvalid AND i.indisready)
