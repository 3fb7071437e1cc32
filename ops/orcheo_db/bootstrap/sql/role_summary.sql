SELECT r.rolname::text, r.rolcanlogin,
       array(SELECT DISTINCT g.rolname::text
               FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid ORDER BY 1),
       coalesce((SELECT s.setconfig FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0),
                ARRAY[]::text[])
  FROM pg_roles r WHERE r.rolname = ANY({names}) ORDER BY 1
