SELECT bool_or(NOT has_schema_privilege(r, 'orcheo_db', 'USAGE')
            OR NOT has_table_privilege(r, 'orcheo_db.installation', 'SELECT'))
       OR to_regclass('orcheo_db.drill_markers') IS NULL
       OR NOT has_table_privilege(coalesce(to_regrole('orcheo_backup'), to_regrole({owner})), to_regclass('orcheo_db.drill_markers'), 'INSERT')
  FROM unnest({roles}::text[]) r
