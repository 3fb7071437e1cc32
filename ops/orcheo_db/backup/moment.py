"""A moment of production, taken while everybody writes: a restore point, and what the tables held there.

One statement of a REPEATABLE READ transaction takes the snapshot S (at its start, for the whole transaction) and writes the restore point R
(a microsecond later). Everything read after it in this transaction is what S sees. Only the restore point is written; a table's lock lasts as
long as one piece of it is read, because each piece ends with a rollback to a savepoint.

The role needs pg_read_all_data and EXECUTE on pg_create_restore_point(text), nothing more.

A managed service takes no restore points and restores to seconds. There R is a moment of the clock, the next whole second T after S
(`second`). It is the same argument: what S saw had its commit record in the WAL before S, and every record before that one has an earlier
time than S, so a recovery to T can't stop before it; whatever else the copy has was marked in its rows before T, and the rows are read,
and the next transaction id is asked for, after T.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg import errors, sql

from orcheo_db.backup.digest import CATALOGS, IN_BLOCKS, LAST, TOTALS, Moving, Piece, Table, Window, begin, movers, rows
from orcheo_db.database import Connection
from orcheo_db.errors import CheckFailed, UserError

SCHEMAS = ("public", "orcheo_db")
FORMAT = 1  # of the JSON document; another number can't be compared
BUDGET = 1 << 30  # bytes of tables with their TOAST
STEP = 512  # blocks of one statement when a table is read whole: 4 MB, and as much time as a lock on the table lasts
RANGE = 128  # blocks of one random range of a table that is too large to be read whole
MOST_MOVING = 50_000  # rows in motion in the document; a piece that would go beyond is left out (something rewrites it in bulk right now)
MOST_RUNNING = 20_000_000  # ids between the oldest running transaction and now: asking for each takes a microsecond
BEYOND_SECOND = 0.05  # seconds after T: the clock is read at once, a timer may be early by its resolution
ATTEMPTS = 3  # at a piece, when its table is locked or a multixact was cleaned up while it was read


@dataclass(frozen=True)
class Sequence_:
    """Values before S and after everything: what the copy has lies between."""

    oid: int
    name: str
    step: int
    cache: int
    before: int
    after: int


@dataclass
class Moment:
    """Everything that a comparison needs: what production held under S, and which restore point R belongs to it."""

    name: str
    lsn: str
    snapshot: str
    system: int
    database: str
    at: str
    seed: str
    window: Window
    seen: list[int]
    tables: list[Table]
    sequences: list[Sequence_]
    notes: list[str]
    seconds: float
    format: int = FORMAT

    def to_json(self) -> str:
        """The document, one line; numbers may be beyond 2^53."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Moment:
        """The moment of a document.

        Raises:
            ValueError: it's no such document, or one of another format.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"not a document of format {FORMAT} of a moment")
        try:
            found["window"] = Window(**found["window"])
            found["sequences"] = [Sequence_(**one) for one in found["sequences"]]
            found["tables"] = [Table.of(one) for one in found["tables"]]
            return cls(**found)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the document of the moment is damaged ({error})") from None


class _NotRead(Exception):
    """A table that can't be read to the end, and why. `again`: a later attempt may succeed."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


@dataclass(frozen=True)
class Sized:
    """A table's size: blocks of its own, bytes with TOAST."""

    oid: int
    blocks: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Ranges of blocks in the order of reading; `wanted` of them are enough, the rest stands in for ranges that can't be read."""

    ranges: list[tuple[int, int]]
    wanted: int
    whole: bool


def plan(sizes: Sequence[Sized], budget_bytes: int, seed: str) -> dict[int, Plan]:
    """What to read of each table, by oid: small ones whole, random ranges of what is larger than its share of the budget.

    The same arguments give the same plan, and another seed other ranges. A table gets at least one range.
    """
    found: dict[int, Plan] = {}
    left = budget_bytes
    for done, one in enumerate(sorted(sizes, key=lambda one: (one.bytes, one.oid))):
        share = max(0, left) // (len(sizes) - done)
        if one.bytes <= share or one.blocks <= RANGE:
            starts = range(0, max(1, one.blocks), STEP)
            ranges = [(start, start + STEP if start != starts[-1] else LAST) for start in starts]
            found[one.oid] = Plan(ranges, len(ranges), True)
            left -= one.bytes
        else:
            total = -(-one.blocks // RANGE)
            wanted = max(1, min(total, round(total * share / one.bytes)))
            dice = random.Random(f"{seed}/{one.oid}")  # noqa: S311  a sample that can be drawn again, not a secret
            drawn = dice.sample(range(total), min(total, wanted * 2))
            found[one.oid] = Plan([(n * RANGE, (n + 1) * RANGE) for n in drawn], wanted, False)
            left -= wanted * one.bytes // total
    return found


def take(
    conn: Connection,
    name: str,
    schemas: Sequence[str] = SCHEMAS,
    budget_bytes: int = BUDGET,
    seed: str | None = None,
    after_restore_point: Callable[[], object] = lambda: None,
    *,
    second: bool = False,
) -> Moment:
    """Write restore point `name` (or, with `second`, let a whole second begin) and read what the tables held at it.

    Args:
        conn: autocommit, to production's primary. Its transaction lasts as long as the reading, and holds VACUUM's horizon.
        name: at most 63 bytes, and never used before in this cluster: recovery stops at the first of that name.
        budget_bytes: how much of the tables to read, about; catalogs come on top.
        seed: which ranges of large tables are read; None draws one.
        after_restore_point: called as soon as the restore point is written (for a marker, on another connection).
        second: no restore point, but the next whole second of the server's clock, which is the moment's `at`; it has no `lsn`.

    Raises:
        UserError: the role lacks a privilege, the server is a standby, or the name is too long.
        CheckFailed: a transaction has been open for too long to tell what it may have done.
        psycopg.OperationalError: the connection or the server is gone.
    """
    started = time.monotonic()
    chosen = seed or secrets.token_hex(8)
    try:
        before = _sequences(conn, schemas)
        fresh, running = _running(conn)
        begin(conn)
        moment = (_second if second else _restore_point)(conn, name, chosen, fresh, running)
        after_restore_point()
        reader = _Reader(conn, moment)
        reader.read(schemas, budget_bytes)
        row = conn.execute("SELECT pg_current_snapshot()::text").fetchone()
        if not row or row[0] != moment.snapshot:
            raise RuntimeError(f"the snapshot was {moment.snapshot} and is {row and row[0]}: not one transaction")
    except errors.InsufficientPrivilege as error:
        raise UserError(
            f"the role can't take a moment of production ({' '.join(str(error).split())}); grant it pg_read_all_data and EXECUTE on"
            " pg_create_restore_point(text); tables with row security need BYPASSRLS as well"
        ) from None
    except (errors.ObjectNotInPrerequisiteState, errors.InvalidParameterValue) as error:
        raise UserError(f"no restore point {name!r} can be written here ({' '.join(str(error).split())})") from None
    finally:
        if not conn.closed:
            conn.execute("ROLLBACK")
    moment.sequences = _between(before, _sequences(conn, schemas))
    moment.seconds = round(time.monotonic() - started, 3)
    return moment


def _running(conn: Connection) -> tuple[int, list[int]]:
    """All running transactions with their subtransactions, and from which id on they were not looked for.

    pg_xact_status knows subtransactions, a snapshot's text doesn't. Twice, so that the second, short look is just before S.
    """
    fresh, running = 0, list[int]()
    for _ in range(2):
        row = conn.execute(
            "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() s"
        ).fetchone()
        oldest, now = row or (0, 0)
        if now - max(oldest, fresh) > MOST_RUNNING:
            raise CheckFailed(
                f"a transaction has been open for the last {now - oldest:,} transactions: end it (pg_stat_activity, pg_prepared_xacts)"
            )
        found = conn.execute(
            "SELECT x FROM (SELECT unnest(%s::bigint[]) UNION ALL SELECT generate_series(%s::bigint, %s::bigint)) c(x)"
            " WHERE pg_xact_status(x::text::xid8) = 'in progress'",
            (running, max(oldest, fresh), now - 1),
        ).fetchall()
        fresh, running = int(now), [int(x) for (x,) in found]
    return fresh, running


def window_of(snapshot: str, upcoming: int, fresh: int, running: list[int]) -> Window:
    """The window of a snapshot's text; `upcoming` is the next transaction id in 32 bits (signed or not), asked after the snapshot."""
    xmin, xmax, listed = snapshot.split(":")
    following = int(xmax) + ((upcoming - int(xmax)) & 0xFFFFFFFF)
    still = [x for x in running if x >= int(xmin)]
    return Window(int(xmin), int(xmax), following, [int(x) for x in listed.split(",") if x], fresh, still)


def _restore_point(conn: Connection, name: str, seed: str, fresh: int, running: list[int]) -> Moment:
    """Take S and write R. age() tells the next id that will be given out: it has to be asked after R, so it depends on R's result."""
    row = conn.execute(
        "SELECT r.lsn::text, pg_current_snapshot()::text, CASE WHEN r.lsn IS NOT NULL THEN age('3'::xid)::bigint + 3 END,"
        " current_database(), (SELECT system_identifier FROM pg_control_system()),"
        " to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        " FROM pg_create_restore_point(%s) AS r(lsn)",
        (name,),
    ).fetchone()
    if row is None:
        raise RuntimeError("pg_create_restore_point gave no row")
    lsn, snapshot, upcoming, database, system, at = row
    window = window_of(str(snapshot), int(upcoming), fresh, running)
    return Moment(name, lsn, snapshot, system, database, at, seed, window, [], [], [], [], 0.0)


def _second(conn: Connection, name: str, seed: str, fresh: int, running: list[int]) -> Moment:
    """Take S, and wait until its next whole second has begun. age() keeps its first answer in a transaction: it is asked after that."""
    row = conn.execute(
        "SELECT pg_current_snapshot()::text, current_database(), (SELECT system_identifier FROM pg_control_system()),"
        " to_char((date_trunc('second', clock_timestamp()) + interval '1 second') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    ).fetchone()
    if row is None:
        raise RuntimeError("the snapshot gave no row")
    snapshot, database, system, at = row
    conn.execute("SELECT pg_sleep(extract(epoch FROM %s::timestamptz - clock_timestamp()) + %s)", (at, BEYOND_SECOND))
    upcoming = conn.execute("SELECT age('3'::xid)::bigint + 3").fetchone()
    window = window_of(str(snapshot), int(upcoming[0]) if upcoming else 0, fresh, running)
    return Moment(name, "", snapshot, system, database, at, seed, window, [], [], [], [], 0.0)


class _Reader:
    """Production under S. What it finds goes into the moment."""

    def __init__(self, conn: Connection, moment: Moment) -> None:
        self.conn, self.moment = conn, moment
        self.values: dict[str, Any] = asdict(moment.window)
        self.seen: set[int] = set()
        self.moving = 0

    def read(self, schemas: Sequence[str], budget_bytes: int) -> None:
        tables = self._tables(schemas)
        sizes = {}
        for table in tables:
            try:
                sizes[table.oid] = self._alone(lambda table=table: self._size(table))  # type: ignore[misc]
            except _NotRead as reason:
                table.note = f"not read: {reason}"
        planned = plan(list(sizes.values()), budget_bytes, self.moment.seed)
        for table in tables:
            if table.oid in planned:
                table.blocks, table.whole = sizes[table.oid].blocks, planned[table.oid].whole
                self._table(table, planned[table.oid])
        self.moment.tables = tables
        self.moment.seen = sorted(self.seen)

    def _tables(self, schemas: Sequence[str]) -> list[Table]:
        query = (
            "SELECT c.oid::bigint, n.nspname, c.relname, coalesce(nullif(c.relfilenode, 0), pg_relation_filenode(c.oid))::bigint,"
            " (SELECT array_agg(a.attname ORDER BY a.attnum)::text[] FROM pg_attribute a"
            " WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), c.relpersistence"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND (n.nspname = ANY (%s) AND n.nspname <> 'pg_catalog'"
            " OR n.nspname = 'pg_catalog' AND c.relname = ANY (%s)) ORDER BY 2, 3"
        )
        found = []
        for oid, schema, name, filenode, names, persistence in self.conn.execute(
            query, (list(schemas), list(CATALOGS))
        ):
            table = Table(oid, schema, name, filenode, names or [])
            if persistence == "p":
                found.append(table)
            else:
                self.moment.notes.append(f"{table.title}: not read: its rows are not in the WAL")
        return found

    def _alone(self, read: Callable[[], Any]) -> Any:
        """Call `read` and let go of every lock that it took.

        Raises:
            _NotRead: the table is locked or gone.
        """
        self.conn.execute("SAVEPOINT piece")
        try:
            return read()
        except errors.LockNotAvailable:
            raise _NotRead("it was locked all the time", again=True) from None
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
            raise _NotRead("it, or a column, was dropped or renamed after the restore point") from None
        except errors.InternalError_ as error:
            if "MultiXactId" not in str(error):
                raise
            raise _NotRead("VACUUM cleaned up its multixacts all the time", again=True) from None
        finally:
            if not self.conn.closed:
                self.conn.execute("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")

    def _size(self, table: Table) -> Sized:
        query = "SELECT pg_relation_size(%s::oid) / current_setting('block_size')::int, pg_table_size(%s::oid)"
        row = self.conn.execute(query, (table.oid, table.oid)).fetchone()
        if not row or row[0] is None or row[1] is None:
            raise _NotRead("it was dropped after the restore point")
        # Catalogs come on top of the budget, and are read whole.
        return Sized(table.oid, int(row[0]), int(row[1]) if table.schema != "pg_catalog" else 0)

    def _table(self, table: Table, planned: Plan) -> None:
        skipped = 0
        for start, end in planned.ranges:
            if len(table.pieces) == planned.wanted:
                break
            try:
                piece, seen = self._again(table, start, end)
            except _NotRead as reason:
                table.pieces, table.note = [], f"not read: {reason}"
                return
            if self.moving + len(piece.moving) > MOST_MOVING:
                skipped += 1
                continue
            self.moving += len(piece.moving)
            self.seen |= seen
            table.pieces.append(piece)
        if len(table.pieces) < planned.wanted:
            table.note = f"{skipped} pieces not read: too many of their rows were being changed"

    def _again(self, table: Table, start: int, end: int) -> tuple[Piece, set[int]]:
        for attempt in range(ATTEMPTS):
            try:
                found: tuple[Piece, set[int]] = self._alone(lambda: self._piece(table, start, end))
                return found
            except _NotRead as reason:
                if not reason.again or attempt == ATTEMPTS - 1:
                    raise
        raise RuntimeError("no attempt")  # pragma: no cover

    def _piece(self, table: Table, start: int, end: int) -> tuple[Piece, set[int]]:
        """Rows of the blocks from `start` to before `end`, and the unsure transactions that are visible in them.

        TRUNCATE and a rewrite hide rows from S; the lock that the reading took keeps the answer true that there was none.
        """
        more = sql.SQL(
            ", array_agg(DISTINCT xid) FILTER (WHERE unsure AND NOT hidden), json_agg(json_build_array(at::text, h1, h2, movers))"
            " FILTER (WHERE movers IS NOT NULL AND NOT hidden)"
        )
        inner = sql.SQL("SELECT v.*, {} AS movers FROM ({}) v").format(movers("v.xm"), rows(table, IN_BLOCKS))
        query = TOTALS.format(kept=sql.SQL("(NOT hidden)"), rows=inner, more=more)
        # VACUUM changes relminmxid, the oldest multixact that the table may carry, in place: S does not hide it.
        row = self.conn.execute(
            "SELECT relminmxid::text::bigint FROM pg_class WHERE oid = %s::oid", (table.oid,)
        ).fetchone()
        values = self.values | {"start": f"({start},0)", "end": f"({end},0)", "oldest": row[0] if row else 1}
        found: Sequence[Any] = self.conn.execute(query, values).fetchone() or ()
        title = sql.Identifier(table.schema, table.name).as_string(self.conn)
        check = self.conn.execute(
            "SELECT pg_relation_filenode(%s::oid), to_regclass(%s)::oid", (table.oid, title)
        ).fetchone()
        if check != (table.filenode, table.oid):
            raise _NotRead("it was truncated, rewritten or replaced after the restore point")
        count, sum1, sum2, size, hidden = found[:5]
        moving = [Moving(at, (h1, h2), moved) for at, h1, h2, moved in found[6] or []]
        return Piece(start, end, count, (int(sum1), int(sum2)), size, hidden, moving), {int(x) for x in found[5] or []}


def _sequences(conn: Connection, schemas: Sequence[str]) -> dict[int, Sequence_]:
    """Every sequence that was used and doesn't cycle; none at all if one is locked or dropped right now (they are an extra)."""
    try:
        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '2s'")
            found = conn.execute(
                "SELECT s.seqrelid::bigint, n.nspname || '.' || c.relname, s.seqincrement, s.seqcache, v.v, v.v FROM pg_sequence s"
                " JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace,"
                " LATERAL (SELECT pg_sequence_last_value(s.seqrelid) AS v) v"
                " WHERE n.nspname = ANY (%s) AND c.relpersistence = 'p' AND NOT s.seqcycle AND v.v IS NOT NULL",
                (list(schemas),),
            ).fetchall()
    except (errors.LockNotAvailable, errors.UndefinedTable, errors.InternalError_):
        return {}
    return {int(row[0]): Sequence_(*row) for row in found}


def _between(before: dict[int, Sequence_], after: dict[int, Sequence_]) -> list[Sequence_]:
    """Those that only went on in between: one that was set back has no bounds."""
    found = []
    for oid, one in before.items():
        last = after.get(oid)
        if last and last.step == one.step and (last.after - one.before) * one.step >= 0:
            found.append(replace(one, after=last.after))
    return found
