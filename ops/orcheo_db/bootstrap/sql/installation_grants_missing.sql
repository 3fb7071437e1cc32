SELECT bool_or(NOT has_schema_privilege(r, 'orcheo_db', 'USAGE')
            OR NOT has_table_privilege(r, 'orcheo_db.installation', 'SELECT'))
  FROM unnest({roles}::text[]) r
