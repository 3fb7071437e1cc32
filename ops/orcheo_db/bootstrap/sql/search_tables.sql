-- What `orcheo-db search` looks into: derived from the app's tables, which stay untouched. Dropping the schema loses nothing.
CREATE SCHEMA IF NOT EXISTS {search};
CREATE TABLE IF NOT EXISTS {search}.documents (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('run', 'step', 'message', 'workflow')),
    source       text NOT NULL,              -- execution, message or workflow id
    part         integer NOT NULL DEFAULT 0, -- step_index
    parent       text,                       -- a message's thread
    workspace_id text,
    workflow_id  text,
    at           timestamptz NOT NULL,
    version      bigint NOT NULL,            -- xmin of the source row: another one means that the row was changed
    tsv          tsvector NOT NULL,
    doc          jsonb NOT NULL,             -- for containment filters; the text shown comes from the source itself
    UNIQUE (source, part, kind)
);
-- How far each source is indexed. last_step: the app numbers an execution's steps without gaps and commits them in that order.
CREATE TABLE IF NOT EXISTS {search}.executions (
    execution_id text PRIMARY KEY,
    last_step    integer NOT NULL,
    version      bigint NOT NULL,
    settled      boolean NOT NULL            -- final for so long that only a full refresh looks again
);
CREATE INDEX IF NOT EXISTS executions_open ON {search}.executions (execution_id) WHERE NOT settled;
CREATE TABLE IF NOT EXISTS {search}.threads (
    thread_id text PRIMARY KEY,
    version   bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS {search}.caught_up (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    at       timestamptz NOT NULL
);
INSERT INTO {search}.caught_up VALUES (true, '-infinity') ON CONFLICT DO NOTHING;
-- Every word of every document once: pg_trgm's own advice for misspelt words (manual, F.33.5). A trigram index over whole texts
-- costs more than all others together and has to recheck each candidate's text.
CREATE TABLE IF NOT EXISTS {search}.words (
    word text PRIMARY KEY
);
