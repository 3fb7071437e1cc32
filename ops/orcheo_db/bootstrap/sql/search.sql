-- Full-text search over run history, chat messages and workflows, in a schema of its own: the app's tables get no column, no
-- index and no trigger. Documents are copies that `orcheo_search.refresh` brings up to date; `orcheo-db search` calls it first.
CREATE SCHEMA IF NOT EXISTS orcheo_search;

CREATE TABLE IF NOT EXISTS orcheo_search.documents (
    kind          text NOT NULL CHECK (kind IN ('run', 'step', 'message', 'workflow')),
    id            text NOT NULL,         -- a run's, message's or workflow's own; a step: RUN/INDEX
    parent        text NOT NULL,         -- run and step: the run; message: its thread; workflow: itself
    workspace_id  text,
    workflow_id   text,
    at            timestamptz NOT NULL,
    version       text NOT NULL,         -- xmin of the source row: another one means that the row was changed
    body          text NOT NULL,         -- the first 4,000 characters of its texts, for snippets and trigrams
    doc           jsonb NOT NULL,
    tsv           tsvector NOT NULL,
    PRIMARY KEY (kind, id)
);
-- Few lexemes are so common that the default of 100 leaves them out of the statistics by which the planner chooses between the
-- index of words and the index of time.
ALTER TABLE orcheo_search.documents ALTER COLUMN tsv SET STATISTICS 1000;

-- Runs that are indexed; `final`: their last step is in.
CREATE TABLE IF NOT EXISTS orcheo_search.runs (
    execution_id  text PRIMARY KEY,
    final         boolean NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_open ON orcheo_search.runs (execution_id) WHERE NOT final;

-- Every text and number of a document, in its order. Not its keys: they are the same in every document.
CREATE OR REPLACE FUNCTION orcheo_search.texts(doc jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(string_agg(value #>> '{{}}', ' '), '')
      FROM jsonb_path_query(doc, 'strict $.** ? (@.type() == "string" || @.type() == "number")') AS value
$$;

-- `simple`: no stemming and no stop words, because payloads are in any language, and error texts, ids and names are meant as written.
-- 100,000 characters: a tsvector holds 1 MB, which so many characters can't fill; what follows them is not found by its words.
CREATE OR REPLACE FUNCTION orcheo_search.words(texts text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT to_tsvector('pg_catalog.simple', left(texts, 100000)) $$;

CREATE OR REPLACE FUNCTION orcheo_search.add_runs(ids text[]) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    ended text[];
    changed bigint;
    total bigint;
BEGIN
    -- First which runs have ended, then their steps: a later statement sees every step that was there at that moment.
    SELECT coalesce(array_agg(h.execution_id), '{{}}') INTO ended
      FROM public.execution_history h
     WHERE h.execution_id = ANY(ids) AND h.status NOT IN ('running', 'pending');

    INSERT INTO orcheo_search.documents AS d
    SELECT 'run', h.execution_id, h.execution_id, h.workspace_id, h.workflow_id, h.started_at, h.xmin::text, left(t.texts, 4000), j.doc,
           orcheo_search.words(t.texts)
      FROM public.execution_history h,
           LATERAL (SELECT jsonb_build_object('status', h.status, 'error', h.error, 'run_name', h.run_name, 'inputs', h.inputs,
                                              'metadata', h.metadata, 'tags', h.tags) AS doc OFFSET 0) j,
           LATERAL (SELECT h.execution_id || ' ' || orcheo_search.texts(j.doc) AS texts OFFSET 0) t
     WHERE h.execution_id = ANY(ids)
        ON CONFLICT (kind, id) DO UPDATE
       SET version = excluded.version, body = excluded.body, doc = excluded.doc, tsv = excluded.tsv
     WHERE d.version <> excluded.version;
    GET DIAGNOSTICS total = ROW_COUNT;

    INSERT INTO orcheo_search.documents
    SELECT 'step', s.execution_id || '/' || s.step_index, s.execution_id, h.workspace_id, h.workflow_id, s.at, '-', left(t.texts, 4000),
           s.payload, orcheo_search.words(t.texts)
      FROM public.execution_history_steps s JOIN public.execution_history h USING (execution_id),
           LATERAL (SELECT orcheo_search.texts(s.payload) AS texts OFFSET 0) t
     WHERE s.execution_id = ANY(ids)
       AND NOT EXISTS (SELECT FROM orcheo_search.documents d WHERE d.kind = 'step' AND d.id = s.execution_id || '/' || s.step_index)
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS changed = ROW_COUNT;

    INSERT INTO orcheo_search.runs AS r
    SELECT id, id = ANY(ended) FROM unnest(ids) AS id
        ON CONFLICT (execution_id) DO UPDATE SET final = excluded.final WHERE r.final <> excluded.final;
    RETURN total + changed;
END
$$;

CREATE OR REPLACE FUNCTION orcheo_search.add_messages(ids text[]) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    changed bigint;
BEGIN
    INSERT INTO orcheo_search.documents AS d
    SELECT 'message', m.id, m.thread_id, t.workspace_id, t.workflow_id, m.created_at, m.xmin::text, left(x.texts, 4000), m.item_json,
           orcheo_search.words(x.texts)
      FROM public.chat_messages m JOIN public.chat_threads t ON t.id = m.thread_id,
           LATERAL (SELECT orcheo_search.texts(m.item_json) AS texts OFFSET 0) x
     WHERE m.id = ANY(ids)
        ON CONFLICT (kind, id) DO UPDATE
       SET version = excluded.version, body = excluded.body, doc = excluded.doc, tsv = excluded.tsv;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;

CREATE OR REPLACE FUNCTION orcheo_search.add_workflows() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    changed bigint;
BEGIN
    INSERT INTO orcheo_search.documents AS d
    SELECT 'workflow', w.id, w.id, w.workspace_id, w.id, w.updated_at, w.xmin::text, left(x.texts, 4000), w.payload,
           orcheo_search.words(x.texts)
      FROM public.workflows w LEFT JOIN orcheo_search.documents o ON o.kind = 'workflow' AND o.id = w.id,
           LATERAL (SELECT coalesce(w.handle, '') || ' ' || orcheo_search.texts(w.payload - 'audit_log') AS texts OFFSET 0) x
     WHERE o.version IS DISTINCT FROM w.xmin::text
        ON CONFLICT (kind, id) DO UPDATE
       SET workspace_id = excluded.workspace_id, at = excluded.at, version = excluded.version, body = excluded.body, doc = excluded.doc,
           tsv = excluded.tsv;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;

-- Documents whose source is gone (deleted by a person or by the app's retention).
CREATE OR REPLACE FUNCTION orcheo_search.remove_orphans() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    gone text[];
    changed bigint;
    total bigint := 0;
BEGIN
    SELECT coalesce(array_agg(r.execution_id), '{{}}') INTO gone
      FROM orcheo_search.runs r WHERE NOT EXISTS (SELECT FROM public.execution_history h WHERE h.execution_id = r.execution_id);
    IF gone <> '{{}}' THEN
        DELETE FROM orcheo_search.documents WHERE kind IN ('run', 'step') AND parent = ANY(gone);
        GET DIAGNOSTICS total = ROW_COUNT;
        DELETE FROM orcheo_search.runs WHERE execution_id = ANY(gone);
    END IF;
    DELETE FROM orcheo_search.documents d
     WHERE (d.kind = 'message' AND NOT EXISTS (SELECT FROM public.chat_messages m WHERE m.id = d.id))
        OR (d.kind = 'workflow' AND NOT EXISTS (SELECT FROM public.workflows w WHERE w.id = d.id));
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN total + changed;
END
$$;

-- One batch of catching up, in one transaction and one at a time. What is missing is found by comparing keys and not by a moment in time,
-- so that a row whose transaction committed late is found like any other.
--   batch: how many runs and how many messages at most; thorough: also messages older than a day that were edited, and orphans.
-- Returns the documents written and removed, and whether there is more to do.
CREATE OR REPLACE FUNCTION orcheo_search.refresh(batch integer, thorough boolean, OUT written bigint, OUT removed bigint, OUT more boolean)
    LANGUAGE plpgsql
AS $$
DECLARE
    fresh text[];
    open_runs text[];
    messages text[];
BEGIN
    PERFORM pg_advisory_xact_lock(1330791490, 2); -- "ORDB", 2: the init job's is 1
    SELECT coalesce(array_agg(n.execution_id), '{{}}') INTO fresh
      FROM (SELECT h.execution_id FROM public.execution_history h
             WHERE NOT EXISTS (SELECT FROM orcheo_search.runs r WHERE r.execution_id = h.execution_id) LIMIT batch) n;
    SELECT coalesce(array_agg(r.execution_id), '{{}}') INTO open_runs
      FROM orcheo_search.runs r JOIN public.execution_history h USING (execution_id) WHERE NOT r.final;
    SELECT coalesce(array_agg(n.id), '{{}}') INTO messages
      FROM (SELECT m.id FROM public.chat_messages m
             WHERE NOT EXISTS (SELECT FROM orcheo_search.documents d WHERE d.kind = 'message' AND d.id = m.id)
             UNION ALL
            SELECT m.id FROM public.chat_messages m JOIN orcheo_search.documents d ON d.kind = 'message' AND d.id = m.id
             WHERE d.version <> m.xmin::text AND (thorough OR m.created_at > now() - interval '1 day')
             LIMIT batch) n;
    more := cardinality(fresh) = batch OR cardinality(messages) = batch;
    written := orcheo_search.add_workflows();
    removed := 0;
    IF fresh || open_runs <> '{{}}' THEN
        written := written + orcheo_search.add_runs(fresh || open_runs);
    END IF;
    IF messages <> '{{}}' THEN
        written := written + orcheo_search.add_messages(messages);
    END IF;
    IF thorough AND NOT more THEN
        removed := orcheo_search.remove_orphans();
    END IF;
END
$$;

REVOKE ALL ON SCHEMA orcheo_search FROM PUBLIC;
GRANT USAGE ON SCHEMA orcheo_search TO {reader}, {monitor};
GRANT SELECT ON ALL TABLES IN SCHEMA orcheo_search TO {reader};
GRANT SELECT ON orcheo_search.runs TO {monitor};
