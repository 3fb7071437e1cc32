-- Tables, columns, indexes and sequences of the owner, as `table t`, `column t.c`, `index i`, `sequence s`.
SELECT CASE c.relkind WHEN 'i' THEN 'index ' WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.relname
  FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = {owner}::regrole
   AND c.relkind IN ('r', 'p', 'i', 'S')
 UNION ALL
SELECT 'column ' || c.relname || '.' || a.attname
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = {owner}::regrole AND c.relkind IN ('r', 'p')
