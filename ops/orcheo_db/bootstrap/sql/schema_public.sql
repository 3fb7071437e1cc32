-- PostgreSQL 14 lets everybody create objects in schema public; 15 and later don't.
GRANT USAGE, CREATE ON SCHEMA public TO {owner};
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
