-- Rows that an export could get wrong, in the app's own tables and in one of every other kind. As role orcheo.
INSERT INTO users (id, email, name, created_at, last_login_at) VALUES
    ('00000000-0000-4000-8000-000000000001', '', NULL, '0044-03-15 00:00:00+00 BC', NULL),
    ('ffffffff-ffff-4fff-bfff-ffffffffffff', '\.', E'\\N', 'infinity', '-infinity'),
    (gen_random_uuid(), E'line\nfeed\r\n\\.\n"quoted", comma\ttab \\ back', ' ', '2026-11-25 12:00:00.000001+05:30', now()),
    (gen_random_uuid(), U&'\FDD0\2400 \FDD0\FFFDd83d \FDD0\FDD0', U&'\+01F600 \202E\FEFF', '294276-12-31 23:59:59.999999+00', now()),
    (gen_random_uuid(), 'null', 'NULL', now(), now()),
    (gen_random_uuid(), '{"$json": 1}', E'\x01\x02\x08\x0c\x7f', now(), now());
INSERT INTO cron_triggers (workflow_id, config) VALUES
    ('a', 'null'), ('b', '{}'), ('c', '[]'), ('d', '""'), ('e', '{"$json": null}'), ('f', '{"$json": {"$json": 1.10}, "x": 1}'), ('g', '["$json"]'),
    ('h', '"$json"'), ('i', ('{"n": ' || 2::numeric ^ 200 || ', "m": -1.10, "z": 0.000, "tiny": 1e-300, "huge": 1e300}')::jsonb),
    ('j', (repeat('[', 1500) || repeat(']', 1500))::jsonb), ('k', (repeat('{"a":', 1200) || '1.10' || repeat('}', 1200))::jsonb),
    ('l', jsonb_build_object(U&'\FDD0\2400', U&'\FDD0#NaN', 'q', E'"\\ \n \t', '', '')), ('m', '{"$base64": "AA=="}'), ('n', 'true'), ('o', '1.10');
INSERT INTO chat_threads (id, title, status_json, metadata_json, created_at, updated_at) VALUES ('t', '', '{}', '{}', now(), now());
INSERT INTO chat_attachments (id, thread_id, attachment_type, name, mime_type, details_json, created_at)
    SELECT 'a' || g, CASE WHEN g > 1 THEN 't' END, 'file', '', 'x', '{}', now() FROM generate_series(1, 3) g;
INSERT INTO chat_attachment_blobs VALUES
    ('a1', '', 0, '', now()), ('a2', '\x00ff5c2e0a0d22', 7, 's', now()),
    ('a3', (SELECT string_agg(sha512(g::text::bytea), '') FROM generate_series(1, 20000) g), 1280000, 's', now());
INSERT INTO checkpoint_blobs VALUES ('t', '', 'c', '1', 'msgpack', '\x81'), ('t', '', 'c', '2', 'empty', NULL), ('t', '', 'c', '3', '', '');
INSERT INTO service_token_audit_log (token_id, action, timestamp, details) SELECT 't', 'used', now(), NULL FROM generate_series(1, 50);
DELETE FROM service_token_audit_log WHERE id > 10;
-- A circle: the app names its release, and the release the app; and a release that its trigger would not let in any more.
INSERT INTO workspaces (id, slug, name, created_at, updated_at) VALUES ('10000000-0000-4000-8000-000000000000', 'w', 'W', now(), now());
INSERT INTO hosted_apps (id, workspace_id, name, visibility, publication_state, created_by, created_at, updated_at) VALUES
    ('20000000-0000-4000-8000-000000000000', '10000000-0000-4000-8000-000000000000', 'app', 'private', 'draft', 'u', now(), now());
INSERT INTO hosted_app_deployments (id, workspace_id, app_id, status, archive_sha256, manifest_sha256, app_manifest, created_by, created_at)
    VALUES ('30000000-0000-4000-8000-000000000000', '10000000-0000-4000-8000-000000000000', '20000000-0000-4000-8000-000000000000',
            'ready', repeat('a', 64), repeat('a', 64), '{}', 'u', now());
INSERT INTO hosted_app_releases (id, workspace_id, app_id, deployment_id, permission_revision, visibility, capability_snapshot, csp_snapshot, snapshot_sha256, created_by, created_at)
    VALUES ('40000000-0000-4000-8000-000000000000', '10000000-0000-4000-8000-000000000000', '20000000-0000-4000-8000-000000000000',
            '30000000-0000-4000-8000-000000000000', 1, 'private', '{}', '{}', repeat('a', 64), 'u', now());
UPDATE hosted_apps SET active_release_id = '40000000-0000-4000-8000-000000000000';
UPDATE hosted_app_deployments SET status = 'failed';
INSERT INTO strange_types (parent, "Odd ""name", num, real4, float8, ints, texts, raws, docs, uuids, doc, span, addr, feeling, padded, at, bits, counted) VALUES
    (NULL, '', 1.10, 'NaN', '-Infinity', '{}', '{}', '{}', '{}', NULL, '{ "a" : 1.10, "a": null }', '1 year 2 days 00:00:00.1', '10.0.0.0/8',
     'so "so"', 'x', '2026-11-25 10:00:00.123456', '101', 7),
    (1, E'\\', 'NaN', 0.1, 1e-300, '[0:1]={1,NULL}', '{{"a,b",NULL},{"NULL","\"\\"}}', '{"\\x00ff",NULL,"\\x"}', ARRAY['null', '[1.10]', NULL]::jsonb[],
     '{00000000-0000-4000-8000-000000000001}', 'null', '-1 mon', '::1', 'ok', '', 'infinity', '', 8),
    (1, NULL, 2::numeric ^ 200, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"\u0024json": 1}', NULL, NULL, NULL, NULL, NULL, NULL, 9);
-- A row before the one that it names, in the order of the file.
UPDATE strange_types SET parent = 3 WHERE id = 2;
INSERT INTO strange_alone VALUES (NULL), (''), ('\.'), (E'\n'), ('"');
INSERT INTO strange_parts VALUES (1, 'low'), (150, NULL);
INSERT INTO strange_json VALUES (E'{ "a" : 1.10,\r\n "a": null }'), ('"\ud83d\ude00 \u0000"');
