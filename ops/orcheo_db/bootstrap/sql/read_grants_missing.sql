-- The relations of the app that the reader can't read yet, whether the default privileges for later ones are missing, and
-- whether it can't even look into the schema.
SELECT (SELECT coalesce(array_agg(c.relname::text ORDER BY c.relname), ARRAY[]::text[])
          FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = {owner}::regrole AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
           AND NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege({reader}, c.oid, 'SELECT')
                                  ELSE has_table_privilege({reader}, c.oid, 'SELECT') END),
       (SELECT count(DISTINCT d.defaclobjtype) < 2
          FROM pg_default_acl d, aclexplode(d.defaclacl) a
         WHERE d.defaclrole = {owner}::regrole AND d.defaclnamespace = 'public'::regnamespace
           AND d.defaclobjtype IN ('r', 'S') AND a.grantee = {reader}::regrole AND a.privilege_type = 'SELECT'),
       NOT has_schema_privilege({reader}, 'public', 'USAGE')
