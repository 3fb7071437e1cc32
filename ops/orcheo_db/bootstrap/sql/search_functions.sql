-- 'simple' and not 'english' (which the app's own chat index uses): identifiers, error texts and other languages are found as they
-- are written. Bounds: a tsvector holds 1 MB, so 16,384 characters of a document's text are indexed, and at most 8,192 of one value (it must not crowd out the rest); of a document that takes more
-- than 64 kB (as stored) filters see the top level's scalars.
-- Arrays, because jsonb_path_query takes each value it returns off the front of a list of all of them: 20 s for 400,000 values.
CREATE OR REPLACE FUNCTION {search}.flat(doc jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT left(coalesce(string_agg(left(v #>> '{{}}', 8192), ' '), ''), 16384)
      FROM jsonb_array_elements(jsonb_path_query_array(jsonb_path_query_array(
               doc, 'strict $.** ? (@.type() == "string" || @.type() == "number")'), '$[0 to 3999]')) v
$$;
CREATE OR REPLACE FUNCTION {search}.step_text(payload jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT left(concat_ws(' ', CASE WHEN jsonb_typeof(payload) = 'object'
                                    THEN (SELECT string_agg(left(k, 200), ' ') FROM (SELECT k FROM jsonb_object_keys(payload) k LIMIT 50) x) END,
                          {search}.flat(payload)), 16384)
$$;
CREATE OR REPLACE FUNCTION {search}.message_text(item jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(nullif({search}.flat(jsonb_path_query_array(item, 'lax $.content[*].text')), ''), {search}.flat(item))
$$;
-- The filterable part of a run. runnable_config stays out: what is configured there may be secret.
CREATE OR REPLACE FUNCTION {search}.run_doc(status text, run_name text, error text, trace_id text, tags jsonb, metadata jsonb, inputs jsonb)
    RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT jsonb_build_object('status', status, 'run_name', run_name, 'error', left(error, 16384), 'trace_id', trace_id, 'tags', tags,
                              'metadata', metadata, 'inputs', inputs)
$$;
CREATE OR REPLACE FUNCTION {search}.run_text(status text, run_name text, error text, tags jsonb, metadata jsonb, inputs jsonb)
    RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT left(concat_ws(' ', run_name, status, left(error, 8192), {search}.flat(tags), {search}.flat(inputs), {search}.flat(metadata)), 16384)
$$;
CREATE OR REPLACE FUNCTION {search}.bounded(doc jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN pg_column_size(doc) <= 65536 THEN doc
                WHEN jsonb_typeof(doc) <> 'object' THEN '{{}}'::jsonb
                ELSE (SELECT coalesce(jsonb_object_agg(key, value), '{{}}') FROM jsonb_each(doc)
                       WHERE jsonb_typeof(value) NOT IN ('object', 'array') AND pg_column_size(value) < 4096) END
$$;
CREATE OR REPLACE FUNCTION {search}.learn(vectors tsvector[]) RETURNS void LANGUAGE sql
AS $$
    INSERT INTO {search}.words
    SELECT DISTINCT lexeme FROM unnest(vectors) v, unnest(v) WHERE length(lexeme) BETWEEN 3 AND 40 AND lexeme !~ '[0-9]'
        ON CONFLICT DO NOTHING
$$;
-- Whether an execution will hardly change any more: final for an hour, or silent for a week (a crashed worker leaves "running").
CREATE OR REPLACE FUNCTION {search}.is_settled(status text, started timestamptz, completed timestamptz, last_span timestamptz)
    RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT status IN ('completed', 'error', 'cancelled') AND coalesce(completed, started) < now() - interval '1 hour'
           OR greatest(started, completed, last_span) < now() - interval '7 days'
$$;
-- Executions after `after` that are new or changed (everything: whatever the state says), at most `batch` steps of them. One
-- transaction: state and documents can't part. Returns where to go on, NULL at the end. Nothing is found by its time, so a row
-- that is committed late is found too.
CREATE OR REPLACE FUNCTION {search}.index_executions(after text, batch integer, everything boolean, OUT next text, OUT written integer)
    LANGUAGE plpgsql
AS $$
DECLARE
    todo text[]; full_batch boolean; last_picked text; vectors tsvector[];
BEGIN
    PERFORM pg_advisory_xact_lock(1330791490, {lock});
    IF everything THEN
        SELECT array_agg(execution_id ORDER BY execution_id) INTO todo FROM (
            SELECT h.execution_id FROM {app}.execution_history h LEFT JOIN {search}.executions s USING (execution_id)
             WHERE h.execution_id > after
               AND (s.version IS DISTINCT FROM h.xmin::text::bigint
                    OR EXISTS (SELECT FROM {app}.execution_history_steps t WHERE t.execution_id = h.execution_id AND t.step_index > s.last_step))
             ORDER BY 1 LIMIT batch) x;
    ELSE
        SELECT array_agg(execution_id ORDER BY execution_id) INTO todo FROM (
            (SELECT h.execution_id FROM {app}.execution_history h
              WHERE h.execution_id > after AND NOT EXISTS (SELECT FROM {search}.executions s WHERE s.execution_id = h.execution_id)
              ORDER BY 1 LIMIT batch)
            UNION
            (SELECT s.execution_id FROM {search}.executions s JOIN {app}.execution_history h USING (execution_id)
              WHERE NOT s.settled AND s.execution_id > after
                AND (s.version <> h.xmin::text::bigint OR {search}.is_settled(h.status, h.started_at, h.completed_at, h.trace_last_span_at)
                     OR EXISTS (SELECT FROM {app}.execution_history_steps t WHERE t.execution_id = h.execution_id AND t.step_index > s.last_step))
              ORDER BY 1 LIMIT batch)
            ORDER BY 1 LIMIT batch) x;
    END IF;
    next := NULL; written := 0;
    IF todo IS NULL THEN
        RETURN;
    END IF;
    WITH h AS (
        SELECT h.*, h.xmin::text::bigint AS row_version, coalesce(s.last_step, -1) AS last_step
          FROM {app}.execution_history h LEFT JOIN {search}.executions s USING (execution_id) WHERE h.execution_id = ANY (todo)
    ), picked AS MATERIALIZED (
        SELECT h.execution_id, h.workspace_id, h.workflow_id, t.step_index, t.at, t.payload
          FROM h CROSS JOIN LATERAL (SELECT * FROM {app}.execution_history_steps t WHERE t.execution_id = h.execution_id AND t.step_index > h.last_step
                                      ORDER BY t.step_index LIMIT batch) t
         ORDER BY h.execution_id, t.step_index LIMIT batch
    ), ends AS (
        SELECT count(*) >= batch AS is_full, max(execution_id) AS last_id FROM picked
    ), steps AS (
        INSERT INTO {search}.documents (kind, source, part, workspace_id, workflow_id, at, version, tsv, doc)
        SELECT 'step', execution_id, step_index, workspace_id, workflow_id, at, 0,
               to_tsvector('pg_catalog.simple', {search}.step_text(payload)), {search}.bounded(payload) FROM picked
            ON CONFLICT (source, part, kind) DO NOTHING RETURNING tsv
    ), runs AS (
        INSERT INTO {search}.documents (kind, source, workspace_id, workflow_id, at, version, tsv, doc)
        SELECT 'run', execution_id, workspace_id, workflow_id, started_at, 0,
               to_tsvector('pg_catalog.simple', {search}.run_text(status, run_name, error, tags, metadata, inputs)),
               {search}.bounded({search}.run_doc(status, run_name, error, trace_id, tags, metadata, inputs)) FROM h
            ON CONFLICT (source, part, kind) DO UPDATE
           SET (workspace_id, workflow_id, at, tsv, doc) = (excluded.workspace_id, excluded.workflow_id, excluded.at, excluded.tsv, excluded.doc)
         WHERE (documents.workspace_id, documents.workflow_id, documents.doc)
               IS DISTINCT FROM (excluded.workspace_id, excluded.workflow_id, excluded.doc) RETURNING tsv
    ), state AS (
        INSERT INTO {search}.executions AS e (execution_id, last_step, version, settled)
        SELECT h.execution_id, coalesce((SELECT max(step_index) FROM picked p WHERE p.execution_id = h.execution_id), h.last_step),
               CASE WHEN ends.is_full AND h.execution_id >= ends.last_id THEN -1 ELSE h.row_version END,
               NOT (ends.is_full AND h.execution_id >= ends.last_id)
               AND {search}.is_settled(h.status, h.started_at, h.completed_at, h.trace_last_span_at)
          FROM h, ends
            ON CONFLICT (execution_id) DO UPDATE SET (last_step, version, settled) = (excluded.last_step, excluded.version, excluded.settled)
    )
    SELECT ends.is_full, ends.last_id, array(SELECT tsv FROM steps UNION ALL SELECT tsv FROM runs)
      INTO full_batch, last_picked, vectors FROM ends;
    written := cardinality(vectors);
    PERFORM {search}.learn(vectors);
    IF everything THEN
        UPDATE {search}.documents d SET workspace_id = h.workspace_id, workflow_id = h.workflow_id
          FROM {app}.execution_history h
         WHERE h.execution_id = ANY (todo) AND d.source = h.execution_id AND d.kind = 'step'
           AND (d.workspace_id, d.workflow_id) IS DISTINCT FROM (h.workspace_id, h.workflow_id);
    END IF;
    -- A full batch ended inside an execution: go on with that one.
    next := CASE WHEN full_batch THEN coalesce((SELECT max(t) FROM unnest(todo) t WHERE t < last_picked), after)
                 WHEN cardinality(todo) >= batch THEN todo[cardinality(todo)] END;
END $$;
CREATE OR REPLACE FUNCTION {search}.index_threads(after text, batch integer, everything boolean, OUT next text, OUT written integer)
    LANGUAGE plpgsql
AS $$
DECLARE
    todo text[]; vectors tsvector[]; since timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(1330791490, {lock});
    -- The app sets updated_at with every change of a thread's messages, in the same transaction. An hour back: for transactions that
    -- were open then, and for clocks that differ.
    SELECT at - interval '1 hour' INTO since FROM {search}.caught_up;
    SELECT array_agg(id ORDER BY id) INTO todo FROM (
        SELECT id FROM {app}.chat_threads t WHERE everything AND id > after ORDER BY 1 LIMIT batch) x;
    IF NOT everything THEN
        SELECT array_agg(id ORDER BY id) INTO todo FROM (
            (SELECT t.id FROM {app}.chat_threads t
              WHERE t.id > after AND NOT EXISTS (SELECT FROM {search}.threads s WHERE s.thread_id = t.id) ORDER BY 1 LIMIT batch)
            UNION
            (SELECT t.id FROM {app}.chat_threads t JOIN {search}.threads s ON s.thread_id = t.id
              WHERE t.id > after AND t.updated_at > since AND s.version <> t.xmin::text::bigint ORDER BY 1 LIMIT batch)
            ORDER BY 1 LIMIT batch) x;
    END IF;
    next := NULL; written := 0;
    IF todo IS NULL THEN
        RETURN;
    END IF;
    WITH t AS (
        SELECT id, workspace_id, workflow_id, xmin::text::bigint AS row_version FROM {app}.chat_threads WHERE id = ANY (todo)
    ), done AS (
        INSERT INTO {search}.documents (kind, source, parent, workspace_id, workflow_id, at, version, tsv, doc)
        SELECT 'message', m.id, t.id, t.workspace_id, t.workflow_id, m.created_at, m.xmin::text::bigint,
               to_tsvector('pg_catalog.simple', {search}.message_text(m.item_json)), {search}.bounded(m.item_json)
          FROM t JOIN {app}.chat_messages m ON m.thread_id = t.id
          LEFT JOIN {search}.documents d ON d.source = m.id AND d.part = 0 AND d.kind = 'message'
         WHERE d.id IS NULL OR (d.version, d.parent, d.workspace_id, d.workflow_id)
               IS DISTINCT FROM (m.xmin::text::bigint, t.id, t.workspace_id, t.workflow_id)
            ON CONFLICT (source, part, kind) DO UPDATE
           SET (parent, workspace_id, workflow_id, at, version, tsv, doc) = (excluded.parent, excluded.workspace_id, excluded.workflow_id,
               excluded.at, excluded.version, excluded.tsv, excluded.doc)
        RETURNING tsv
    ), gone AS (
        DELETE FROM {search}.documents d USING t
         WHERE d.kind = 'message' AND d.parent = t.id AND NOT EXISTS (SELECT FROM {app}.chat_messages m WHERE m.id = d.source)
    ), state AS (
        INSERT INTO {search}.threads SELECT id, row_version FROM t ON CONFLICT (thread_id) DO UPDATE SET version = excluded.version
    )
    SELECT array(SELECT tsv FROM done) INTO vectors;
    written := cardinality(vectors);
    PERFORM {search}.learn(vectors);
    next := CASE WHEN cardinality(todo) >= batch THEN todo[cardinality(todo)] END;
END $$;
CREATE OR REPLACE FUNCTION {search}.index_workflows(after text, batch integer, everything boolean, OUT next text, OUT written integer)
    LANGUAGE plpgsql
AS $$
DECLARE
    vectors tsvector[];
BEGIN
    PERFORM pg_advisory_xact_lock(1330791490, {lock});
    WITH done AS (
        INSERT INTO {search}.documents (kind, source, workspace_id, workflow_id, at, version, tsv, doc)
        SELECT 'workflow', w.id, w.workspace_id, w.id, w.updated_at, w.xmin::text::bigint,
               to_tsvector('pg_catalog.simple', left(concat_ws(' ', w.handle, {search}.flat(w.payload)), 16384)), {search}.bounded(w.payload)
          FROM {app}.workflows w LEFT JOIN {search}.documents d ON d.source = w.id AND d.part = 0 AND d.kind = 'workflow'
         WHERE d.version IS DISTINCT FROM w.xmin::text::bigint AND w.id > after
            ON CONFLICT (source, part, kind) DO UPDATE
           SET (workspace_id, at, version, tsv, doc) = (excluded.workspace_id, excluded.at, excluded.version, excluded.tsv, excluded.doc)
        RETURNING tsv
    )
    SELECT array(SELECT tsv FROM done) INTO vectors;
    written := cardinality(vectors);
    PERFORM {search}.learn(vectors);
    next := NULL;
END $$;
-- Before a full refresh: forget what has no source any more, and look again at executions with steps that were passed over.
CREATE OR REPLACE FUNCTION {search}.prune() RETURNS bigint LANGUAGE plpgsql
AS $$
DECLARE
    total bigint := 0; n bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(1330791490, {lock});
    DELETE FROM {search}.documents d WHERE kind = 'step'
       AND NOT EXISTS (SELECT FROM {app}.execution_history_steps t WHERE t.execution_id = d.source AND t.step_index = d.part);
    GET DIAGNOSTICS n = ROW_COUNT; total := total + n;
    DELETE FROM {search}.documents d WHERE kind = 'run' AND NOT EXISTS (SELECT FROM {app}.execution_history h WHERE h.execution_id = d.source);
    GET DIAGNOSTICS n = ROW_COUNT; total := total + n;
    DELETE FROM {search}.documents d WHERE kind = 'message' AND NOT EXISTS (SELECT FROM {app}.chat_messages m WHERE m.id = d.source);
    GET DIAGNOSTICS n = ROW_COUNT; total := total + n;
    DELETE FROM {search}.documents d WHERE kind = 'workflow' AND NOT EXISTS (SELECT FROM {app}.workflows w WHERE w.id = d.source);
    GET DIAGNOSTICS n = ROW_COUNT; total := total + n;
    DELETE FROM {search}.executions s WHERE NOT EXISTS (SELECT FROM {app}.execution_history h WHERE h.execution_id = s.execution_id);
    DELETE FROM {search}.threads s WHERE NOT EXISTS (SELECT FROM {app}.chat_threads t WHERE t.id = s.thread_id);
    UPDATE {search}.executions e SET last_step = x.first - 1, version = -1
      FROM (SELECT t.execution_id, min(t.step_index) AS first
              FROM {app}.execution_history_steps t JOIN {search}.executions s USING (execution_id)
             WHERE t.step_index <= s.last_step
               AND NOT EXISTS (SELECT FROM {search}.documents d WHERE d.source = t.execution_id AND d.part = t.step_index AND d.kind = 'step')
             GROUP BY 1) x
     WHERE e.execution_id = x.execution_id;
    RETURN total;
END $$;
CREATE OR REPLACE FUNCTION {search}.pending() RETURNS bigint LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (SELECT count(*) FROM {app}.execution_history h
             WHERE NOT EXISTS (SELECT FROM {search}.executions s WHERE s.execution_id = h.execution_id))
         + (SELECT count(*) FROM {search}.executions s JOIN {app}.execution_history h USING (execution_id)
             WHERE NOT s.settled AND s.version <> h.xmin::text::bigint)
         + (SELECT count(*) FROM {app}.chat_threads t LEFT JOIN {search}.threads s ON s.thread_id = t.id
             WHERE s.version IS DISTINCT FROM t.xmin::text::bigint)
         + (SELECT count(*) FROM {app}.workflows w LEFT JOIN {search}.documents d ON d.source = w.id AND d.part = 0 AND d.kind = 'workflow'
             WHERE d.version IS DISTINCT FROM w.xmin::text::bigint);
END $$;
