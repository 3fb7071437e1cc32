"""What the tables held at one moment, as counts and sums of row hashes, and whether a restored copy holds the same.

The sums are read in production under a snapshot S while everybody goes on writing; the copy was recovered to a restore point R that was
written a moment after S was taken (`moment.take`). Between the two stand only the transactions whose commit record was in the WAL before R
and which had not yet left the list of running transactions when S was taken. SQL can't name them exactly, because a snapshot's text has no
subtransactions; so every transaction is in one of three classes (`Window`), and the rule for each is such that an honest copy never fails:

- finished before S for sure: compared.
- surely not visible in S (in its list, or younger): its rows are not compared, they are counted as written "in the moment".
- unsure (it ran when production was asked just before S, and S does not list it: a subtransaction, or one that ended in between): visible
  if any row of it was read under S, else not. A row that the copy shows in a block that was read, and that S saw, was read under S.

A row that S saw may be missing in the copy only if a transaction that may have changed it then (its xmax, or an updating member of its
multixact) is committed in the copy. What stays unproven is named: rows written in the moment; and a row lost by damage that such a
transaction had locked and not changed.

The copy must be promoted and untouched: compare before anything is written there (an extension, a role), as that is a difference too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from orcheo_db.database import Connection

if TYPE_CHECKING:
    from orcheo_db.backup.moment import Moment

# Everything that changes how a value is written as text. Both sides use the same.
PINS: dict[LiteralString, LiteralString] = {
    "datestyle": "ISO, YMD", "intervalstyle": "postgres", "timezone": "UTC", "extra_float_digits": "1", "bytea_output": "hex",
    "lc_monetary": "C", "quote_all_identifiers": "off", "search_path": "pg_catalog",
    "row_security": "off",  # an error rather than a part of the rows
    "enable_seqscan": "off",  # a range of blocks is a TID range scan, whatever the statistics say
    "jit": "off", "max_parallel_workers_per_gather": "0",  # one core of production's, not more
    "statement_timeout": "0", "transaction_timeout": "0", "idle_in_transaction_session_timeout": "0", "lock_timeout": "2s",
}  # fmt: skip
SINCE: dict[str, int] = {"transaction_timeout": 170000}  # a managed service may run an older PostgreSQL
# Of the catalogs, the columns that are changed by transactions only (not in place, as VACUUM does) and whose text needs no other catalog.
CATALOGS: dict[str, LiteralString] = {
    "pg_class": "ROW(t.oid, t.relname, t.relnamespace, t.reltype, t.relowner, t.relam, t.relfilenode, t.reltablespace, t.reltoastrelid,"
    " t.relpersistence, t.relkind, t.relnatts, t.relchecks, t.relrowsecurity, t.relforcerowsecurity, t.relispartition, t.reloptions)",
    "pg_attribute": "ROW(t.attrelid, t.attname, t.atttypid, t.attlen, t.attnum, t.atttypmod, t.attndims, t.attnotnull, t.atthasdef,"
    " t.attidentity, t.attgenerated, t.attisdropped, t.attcollation, t.attoptions)",
    "pg_proc": "ROW(t.oid, t.proname, t.pronamespace, t.proowner, t.prosrc, t.probin, t.proargtypes, t.prorettype, t.proconfig)",
    "pg_namespace": "ROW(t.oid, t.nspname, t.nspowner)",
    "pg_attrdef": "(t.*)",
    "pg_constraint": "(t.*)",
    "pg_enum": "(t.*)",
    "pg_extension": "(t.*)",
    "pg_index": "(t.*)",
    "pg_inherits": "(t.*)",
    "pg_rewrite": "(t.*)",
    "pg_sequence": "(t.*)",
    "pg_trigger": "(t.*)",
}
LAST = 4_294_967_294  # no block has this number: the end of a table whose size may still grow
SEQUENCE_AHEAD = 32  # PostgreSQL logs this many values of a sequence ahead, so a recovered one may be further
RECORD_SLACK = (
    64  # bytes between the end of R as the function and as recovery name it (a page's header may lie between)
)


@dataclass(frozen=True)
class Window:
    """Which transactions S may not have seen. Numbers are 64-bit transaction ids.

    Attributes:
        base: S's xmin; everything older had finished.
        xmax: S's xmax; nothing from here on is visible in S.
        next: no id from here on was given out before R.
        listed: the running top-level transactions of S.
        fresh: ids from here on may have begun after production was asked what runs, just before S.
        running: what ran then, subtransactions included.
    """

    base: int
    xmax: int
    next: int
    listed: list[int]
    fresh: int
    running: list[int]


@dataclass(frozen=True)
class Moving:
    """A row that S saw and that transactions not surely visible in S (`movers`) had marked when it was read."""

    ctid: str
    hashes: tuple[int, int]
    movers: list[int]


@dataclass(frozen=True)
class Piece:
    """The rows that S saw in the blocks from `start` to before `end`; `hidden` of them carry an id of an earlier round of ids
    that looks like one not visible in S, and are left out on both sides."""

    start: int
    end: int
    rows: int
    sums: tuple[int, int]
    bytes: int
    hidden: int
    moving: list[Moving]


@dataclass
class Table:
    """`filenode` names its storage and `columns` are its columns under S; `blocks` is its size then; `note` says why it (or a part) was not read."""

    oid: int
    schema: str
    name: str
    filenode: int
    columns: list[str]
    blocks: int = 0
    whole: bool = True
    pieces: list[Piece] = field(default_factory=list)
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.schema}.{self.name}"

    @classmethod
    def of(cls, found: dict[str, Any]) -> Table:
        """The table of a document (`asdict`, by way of JSON)."""
        pieces = []
        for one in found.pop("pieces"):
            moving = [Moving(m["ctid"], tuple(m["hashes"]), m["movers"]) for m in one.pop("moving")]
            pieces.append(Piece(**(one | {"sums": tuple(one["sums"])}), moving=moving))
        return cls(**found, pieces=pieces)


# What both sides read -------------------------------------------------------------------------------------------------


def full(column: LiteralString) -> sql.Composable:
    """The 64-bit id of an xid column, which is known to be at or after `base`: older ones come out beyond `next`."""
    return sql.SQL("(%(base)s::bigint + (({}::text::bigint - %(base)s::bigint) & 4294967295))").format(sql.SQL(column))


_HIDDEN = "({x} < %(next)s::bigint AND ({x} >= %(xmax)s::bigint OR {x} = ANY (%(listed)s::bigint[])))"
_MAYBE = "({x} < %(next)s::bigint AND ({x} >= %(fresh)s::bigint OR {x} = ANY (%(listed)s::bigint[]) OR {x} = ANY (%(running)s::bigint[])))"
# A number can't tell a transaction from a multixact, so an xmax is taken for both where it could be either: one mover too many does
# no harm. mxid_age is read at each row, because a multixact made after the statement began can carry an update from before R.
MOVERS = sql.SQL(
    """CASE WHEN {xm} = '0'::xid THEN NULL ELSE (SELECT array_agg(DISTINCT c.x) FROM (
      SELECT {plain} AS x
      UNION ALL SELECT {member} FROM pg_get_multixact_members(CASE WHEN mxid_age({xm}) > 0
        AND (({xm}::text::bigint - %(oldest)s::bigint) & 4294967295) < 2147483648 THEN {xm} END) m WHERE m.mode IN ('upd', 'nokeyupd')) c
    WHERE {maybe}) END"""
)


def movers(xmax: LiteralString) -> sql.Composable:
    """SQL: the ids that an xmax column may mean and that S may not see as finished (NULL: none)."""
    return MOVERS.format(
        xm=sql.SQL(xmax), plain=full(xmax), member=full("m.xid"), maybe=sql.SQL(_MAYBE).format(x=sql.SQL("c.x"))
    )


def rows(table: Table, where: sql.Composable) -> sql.Composed:
    """SQL: one line for each visible row of the table: at, xid, xm, body, hidden, unsure, h1, h2.

    OFFSET 0 keeps the planner from writing a row's text once for each of its hashes.
    """
    body = sql.SQL("ROW({})").format(sql.SQL(", ").join(sql.Identifier("t", name) for name in table.columns))
    if table.schema == "pg_catalog":
        body = sql.Composed([sql.SQL(CATALOGS[table.name])])
    return sql.SQL(
        "SELECT b.*, {hidden} AS hidden, {maybe} AS unsure,"
        " hashtextextended(b.body, 8102147) AS h1, hashtextextended(b.body, 77530691) AS h2"
        ' FROM (SELECT t.ctid AS at, {xid} AS xid, t.xmax AS xm, {body}::text COLLATE "C" AS body FROM ONLY {table} t WHERE {where}'
        " OFFSET 0) b OFFSET 0"
    ).format(
        hidden=sql.SQL(_HIDDEN).format(x=sql.SQL("b.xid")),
        maybe=sql.SQL(_MAYBE).format(x=sql.SQL("b.xid")),
        xid=full("t.xmin"),
        body=body,
        table=sql.Identifier(table.schema, table.name),
        where=where,
    )


IN_BLOCKS = sql.SQL("t.ctid >= %(start)s::tid AND t.ctid < %(end)s::tid")
TOTALS = sql.SQL(
    "SELECT count(*) FILTER (WHERE {kept}), coalesce(sum(h1) FILTER (WHERE {kept}), 0)::text,"
    " coalesce(sum(h2) FILTER (WHERE {kept}), 0)::text, coalesce(sum(octet_length(body)) FILTER (WHERE {kept}), 0)::bigint,"
    " count(*) FILTER (WHERE NOT {kept}){more} FROM ({rows}) r"
)


def begin(conn: Connection) -> None:
    """A transaction of one snapshot, which its first query will take, with all that is pinned. SET takes no snapshot."""
    pins = sql.SQL("; ").join(
        sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in PINS.items()
        if conn.info.server_version >= SINCE.get(name, 0)
    )
    conn.execute(sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}").format(pins))


# The comparison -------------------------------------------------------------------------------------------------------


@dataclass
class Compared:
    """One table's part of the evidence. `note`: why it was not, or not wholly, compared."""

    table: str
    blocks: int
    blocks_compared: int = 0
    rows: int = 0
    bytes: int = 0
    committed_in_the_moment: int = 0
    replaced_in_the_moment: int = 0
    note: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """`problems` are differences, one line each; `bytes_compared` is the text of the rows whose hashes were compared;
    `committed_in_the_moment` are rows that the copy rightly has beyond S, `replaced_in_the_moment` those of S that it rightly lacks."""

    tables: list[Compared]
    problems: list[str]
    notes: list[str]
    rows_compared: int = 0
    bytes_compared: int = 0
    committed_in_the_moment: int = 0
    replaced_in_the_moment: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems


def compare(
    conn: Connection, moment: Moment, arrived: Callable[[Connection, Moment], list[str]] | None = None
) -> Comparison:
    """Whether the copy is what production was at the moment.

    Args:
        conn: autocommit, on the promoted copy, in which nothing was written yet. A superuser, because of `at_restore_point`.
        arrived: what is wrong with where recovery stopped; None: `at_restore_point`.

    Raises:
        psycopg.OperationalError: the copy is gone. Everything else that the copy says is a problem of the result.
    """
    started = time.monotonic()
    found = Comparison([], [], list(moment.notes))
    found.problems += (arrived or at_restore_point)(conn, moment)
    begin(conn)
    try:
        here = _Copy(conn, moment)
        for table in moment.tables:
            compared = here.table(table)
            found.tables.append(compared)
            found.problems += [f"{table.title}: {problem}" for problem in compared.problems]
            found.rows_compared += compared.rows
            found.bytes_compared += compared.bytes
            found.committed_in_the_moment += compared.committed_in_the_moment
            found.replaced_in_the_moment += compared.replaced_in_the_moment
        found.problems += here.sequences()
        if not any(table.pieces for table in moment.tables if table.schema != "pg_catalog"):
            found.problems.append("nothing could be compared: no table was read in production")
    finally:
        conn.execute("ROLLBACK")
    found.notes += [f"{one.table}: {one.note}" for one in found.tables if one.note]
    found.seconds = round(time.monotonic() - started, 3)
    return found


def same_cluster(conn: Connection, moment: Moment) -> list[str]:
    """Is it the same cluster and database, promoted?"""
    row = conn.execute(
        "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), current_database()"
    ).fetchone()
    recovering, system, database = row or (True, 0, "")
    if system != moment.system or database != moment.database:
        return [f"the copy is database {database} of cluster {system}, not {moment.database} of {moment.system}"]
    return ["the copy is still in recovery: it has to be promoted at the restore point"] if recovering else []


def at_restore_point(conn: Connection, moment: Moment) -> list[str]:
    """Is it the same cluster, promoted exactly at R? The file of its timeline says where recovery stopped and why."""
    if wrong := same_cluster(conn, moment):
        return wrong
    text = conn.execute(
        "SELECT pg_read_file('pg_wal/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '.history', 0, 1048576, true)"
    ).fetchone()
    lines = [line for line in str(text[0] if text and text[0] else "").splitlines() if line.strip()]
    _, lsn, reason = (*lines[-1].split("\t"), "", "", "")[:3] if lines else ("", "", "")
    if reason == f'at restore point "{moment.name}"' and abs(_number(lsn) - _number(moment.lsn)) <= RECORD_SLACK:
        return []
    where = f"{lsn} ({reason})" if lines else "no point (it has no history)"
    return [f'the copy was recovered to {where}, not to restore point "{moment.name}" at {moment.lsn}']


def _number(lsn: str) -> int:
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16) if high and low else 0


class _Copy:
    """The copy in one snapshot, beside the moment."""

    def __init__(self, conn: Connection, moment: Moment) -> None:
        self.conn, self.moment = conn, moment
        self.values: dict[str, Any] = asdict(moment.window) | {"seen": moment.seen}
        asked = {x for table in moment.tables for p in table.pieces for row in p.moving for x in row.movers}
        # An id that the copy never heard of is an error there: it wrote nothing before R.
        committed = conn.execute(
            "SELECT x FROM unnest(%s::bigint[]) x WHERE CASE WHEN x < pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            " THEN pg_xact_status(x::text::xid8) = 'committed' END",
            (sorted(asked - set(moment.seen)),),
        )
        self.committed = {int(x) for (x,) in committed}

    def table(self, table: Table) -> Compared:
        found = Compared(table.title, table.blocks, note=table.note)
        if not table.pieces:
            return found
        # A table that was changed in the moment has no pieces: its lock, and then the change, stood in the way of reading it.
        row = self.conn.execute("SELECT pg_relation_filenode(%s)", (table.oid,)).fetchone() or (None,)
        if row[0] is None:
            found.problems.append("is not there")
        elif row[0] != table.filenode:
            found.problems.append(f"was rewritten (its storage is {row[0]}, not {table.filenode})")
        else:
            self._pieces(table, found)
        return found

    def _pieces(self, table: Table, found: Compared) -> None:
        for piece in table.pieces:
            self.conn.execute("SAVEPOINT piece")
            try:
                self._piece(table, piece, found)
            except psycopg.Error as error:
                if self.conn.closed:
                    raise
                found.problems.append(f"{_blocks(piece)} can't be read ({' '.join(str(error).split())[:300]})")
            self.conn.execute("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")

    def _piece(self, table: Table, piece: Piece, found: Compared) -> None:
        kept = sql.SQL("(NOT hidden AND (NOT unsure OR xid = ANY (%(seen)s::bigint[])))")
        query = TOTALS.format(kept=kept, rows=rows(table, IN_BLOCKS), more=sql.SQL(""))
        values = self.values | {"start": f"({piece.start},0)", "end": f"({piece.end},0)"}
        count, sum1, sum2, size, others = self.conn.execute(query, values).fetchone() or (0, 0, 0, 0, 0)
        expected = [piece.rows, *piece.sums]
        lost: list[str] = []
        for moved in self._missing(table, piece, kept):
            if self.committed.intersection(moved.movers):
                expected = [expected[0] - 1, expected[1] - moved.hashes[0], expected[2] - moved.hashes[1]]
                found.replaced_in_the_moment += 1
            else:
                lost.append(moved.ctid)
        found.rows += count
        found.bytes += size
        found.committed_in_the_moment += max(0, others - piece.hidden)
        found.blocks_compared += max(0, min(piece.end, table.blocks) - piece.start)
        if [count, int(sum1), int(sum2)] == expected:
            return
        problem = f"{_blocks(piece)}: {count} rows, and production had {expected[0]}"
        if count == expected[0]:
            problem = f"{_blocks(piece)}: the {count} rows are not production's: their hashes add up to another sum"
        found.problems.append(problem + (f"; missing or changed: {', '.join(lost[:5])}" if lost else ""))

    def _missing(self, table: Table, piece: Piece, kept: sql.Composable) -> list[Moving]:
        """Those rows in motion that are not in their place in the copy, or not the same."""
        if not piece.moving:
            return []
        query = sql.SQL("SELECT at::text, h1, h2 FROM ({}) r WHERE {}")
        query_here = query.format(rows(table, sql.SQL("t.ctid = ANY (%(places)s::tid[])")), kept)
        here = self.conn.execute(query_here, self.values | {"places": [one.ctid for one in piece.moving]})
        there = {str(at): (int(h1), int(h2)) for at, h1, h2 in here}
        return [one for one in piece.moving if there.get(one.ctid) != one.hashes]

    def sequences(self) -> list[str]:
        """Sequences are behind, or further than what PostgreSQL logs ahead."""
        problems = []
        query = "SELECT seqrelid::bigint, pg_sequence_last_value(seqrelid) FROM pg_sequence WHERE seqrelid = ANY (%s::oid[])"
        oids = [one.oid for one in self.moment.sequences]
        values = dict(self.conn.execute(query, (oids,)).fetchall())
        for one in self.moment.sequences:
            last = one.after + one.step * (SEQUENCE_AHEAD + one.cache)
            value = values.get(one.oid)
            if value is None or not min(one.before, last) <= value <= max(one.before, last):
                problems.append(
                    f"{one.name}: the sequence is at {value}, and production's was between {one.before} and {last}"
                )
        return problems


def _blocks(piece: Piece) -> str:
    return f"blocks {piece.start} to {piece.end - 1}" if piece.end < LAST else f"blocks from {piece.start}"
