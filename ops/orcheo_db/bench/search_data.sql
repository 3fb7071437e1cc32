-- The bench's rows: 20 steps an execution, 40 words a step drawn by Zipf's law (rank r with probability 1/r) from 50,000 made-up
-- words, 20 workspaces of which each is smaller than the one before, a year of time. LIKE ... INCLUDING ALL: the app's own columns and indexes.
CREATE TABLE {app}.workflows (LIKE public.workflows INCLUDING ALL);
CREATE TABLE {app}.execution_history (LIKE public.execution_history INCLUDING ALL);
CREATE TABLE {app}.execution_history_steps (LIKE public.execution_history_steps INCLUDING ALL);
CREATE TABLE {app}.chat_threads (LIKE public.chat_threads INCLUDING ALL);
CREATE TABLE {app}.chat_messages (LIKE public.chat_messages INCLUDING ALL);
CREATE TABLE {app}.workspaces (LIKE public.workspaces INCLUDING ALL);
CREATE FUNCTION {app}.sentence(seed bigint, many integer) RETURNS text LANGUAGE sql VOLATILE
AS $$
    SELECT string_agg(a[1 + r % 20] || a[1 + r / 20 % 20] || CASE WHEN r >= 400 THEN a[1 + r / 400 % 20] ELSE '' END
                      || CASE WHEN r >= 8000 THEN a[1 + r / 8000 % 20] ELSE '' END, ' ')
      FROM (SELECT floor(exp(random() * ln(50000)))::int AS r, {syllables}::text[] AS a FROM generate_series(1, many) WHERE seed > 0 OFFSET 0) x
$$;
INSERT INTO {app}.execution_history (execution_id, workflow_id, workspace_id, inputs, status, started_at, completed_at)
SELECT md5('e' || n)::uuid::text, 'workflow-' || n % 200, 'workspace-' || floor(20 * power(random(), 2))::int,
       jsonb_build_object('topic', {app}.sentence(n, 4)), CASE WHEN n % 20 = 0 THEN 'error' ELSE 'completed' END,
       timestamptz '2025-01-01' + n * (interval '330 days' / {executions}), timestamptz '2025-01-01' + n * (interval '330 days' / {executions})
  FROM generate_series(1, {executions}) n;
INSERT INTO {app}.execution_history_steps
SELECT h.execution_id, i, h.started_at + i * interval '1 second',
       jsonb_build_object(('{{planner,retriever,agent,tool,writer}}'::text[])[1 + i % 5], jsonb_build_object(
           'status', CASE WHEN random() < 0.01 THEN 'error' ELSE 'ok' END, 'ticket', 'T' || floor(random() * 100000)::int,
           'duration_ms', floor(random() * 5000)::int,
           'messages', jsonb_build_array(jsonb_build_object('role', 'assistant', 'content', {app}.sentence(i + 1, 40)))))
  FROM {app}.execution_history h, generate_series(0, 19) i ORDER BY h.started_at, i;
INSERT INTO {app}.chat_threads (id, title, workflow_id, workspace_id, status_json, metadata_json, created_at, updated_at)
SELECT 'thread-' || n, 'Thread ' || n, 'workflow-' || n % 200, 'workspace-' || n % 20, '{{}}', '{{}}', now(), now() FROM generate_series(1, 1000) n;
INSERT INTO {app}.chat_messages
SELECT 'message-' || n, 'thread-' || 1 + n % 1000, n / 1000, 'user_message',
       jsonb_build_object('type', 'user_message', 'content', jsonb_build_array(jsonb_build_object('text', {app}.sentence(n, 25)))),
       timestamptz '2025-01-01' + n * interval '20 minutes' FROM generate_series(1, 20000) n;
INSERT INTO {app}.workflows (id, handle, payload, created_at, updated_at, workspace_id)
SELECT 'workflow-' || n, 'handle-' || n, jsonb_build_object('name', {app}.sentence(n + 1, 4), 'description', {app}.sentence(n + 1, 20)), now(), now(),
       'workspace-' || n % 20 FROM generate_series(0, 199) n;
