"""PostgreSQL's settings for a size: its own values, then the spec's, else computed, each with the reason.

Sources of the formulas: PostgreSQL 17 documentation (chapters 19 "Server Configuration", 24 "Routine
Maintenance", 28 "Monitoring"), pgtune (le0pard/pgtune, profile "web": shared_buffers, effective_cache_size,
maintenance_work_mem, work_mem, effective_io_concurrency). Where this differs, the reason says so.
"""

from __future__ import annotations

from orcheo_db.spec import Size, Spec, format_memory
from orcheo_db.tuning.fixed import BACKUP_SOCKETS, FIXED
from orcheo_db.tuning.model import Setting
from orcheo_db.tuning.overrides import check_overrides

STANZA = "orcheo"  # pgBackRest's name of the cluster
KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


def postgresql_settings(size: Size, spec: Spec) -> list[Setting]:
    """Every PostgreSQL setting of `size`, in the order and groups of postgresql.conf.

    A size's own value wins, then the spec's [settings], else it is computed; the reason says which. Memory
    and time are written with PostgreSQL's units.

    Raises:
        SpecError: a value of the size or the spec that PostgreSQL would refuse.
    """
    check_overrides(size, spec)
    computed = [*_connections(size), *_memory(size), *_wal(size), *_archive(spec), *_planner(size), *_workers(size)]
    computed += [*_autovacuum(size), *(_shared_sockets(setting, spec) for setting in FIXED)]
    names = {setting.name for setting in computed}
    found = [_chosen(setting, size, spec) for setting in computed]
    for name in sorted({*size.settings, *spec.settings} - names):
        found.append(_chosen(Setting(name, "", "", "Further settings of the spec"), size, spec))
    return found


def _chosen(setting: Setting, size: Size, spec: Spec) -> Setting:
    name, computed = setting.name, f" (else {setting.value})" if setting.value else ""
    if name == "max_connections" and size.settings.get(name, setting.value) == setting.value:
        return setting
    if name in size.settings:
        value = size.settings[name]
        reason = f"set for size {size.name}{computed}"
        if name in spec.settings:
            reason += f"; wins over the spec's [settings], which say {spec.settings[name]}"
    elif name in spec.settings:
        value, reason = spec.settings[name], f"set in the spec's [settings]{computed}"
    else:
        return setting
    why = f"{setting.reason}; {reason}" if setting.reason and value == setting.value else reason
    return Setting(name, value, why, setting.group)


def _clamp(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _step(size: int) -> str:
    """A round size: whole megabytes, below one megabyte multiples of 64 kB (PostgreSQL's least work_mem)."""
    return format_memory(size // MB * MB if size >= MB else max(64 * KB, size // (64 * KB) * 64 * KB))


def _connections(size: Size) -> list[Setting]:
    group = "Connections"
    return [
        Setting(
            "max_connections",
            str(size.max_connections),
            "the size's own; PgBouncer lets many more clients share them, and each costs memory and snapshot time",
            group,
        ),
        Setting(
            "superuser_reserved_connections",
            "3",
            "the superuser on the local socket gets in when everything else is taken (backups use these too)",
            group,
        ),
        Setting(
            "reserved_connections",
            str(reserved_connections(size)),
            "for roles granted pg_use_reserved_connections: monitoring and administration while the app is stuck",
            group,
        ),
    ]


def reserved_connections(size: Size) -> int:
    """2 % of the connections, from 3 to 10."""
    return _clamp(3, size.max_connections // 50, 10)


def shared_buffers(size: Size) -> int:
    """25 % of memory in bytes, as the documentation (19.4.1) has for a dedicated server, and pgtune."""
    return size.memory // 4 // MB * MB


def maintenance_work_mem(size: Size) -> int:
    """1/16 of memory in bytes, at most 2 GB, as pgtune."""
    return min(size.memory // 16, 2 * GB) // MB * MB


def parallel_workers(size: Size) -> int:
    """One worker a core, at least 2, as pgtune."""
    return max(2, size.cpus)


def worker_processes(size: Size) -> int:
    """The parallel workers and 4 more, for logical replication's launcher and workers and for extensions."""
    return parallel_workers(size) + 4


def work_mem(size: Size) -> int:
    """(memory - shared_buffers) / (3 x (connections + workers)) in bytes, as pgtune's web profile.

    3, because a query may sort or hash in several places at once, a hash takes twice this
    (hash_mem_multiplier), and the operating system's cache and maintenance need the rest.
    """
    return (size.memory - shared_buffers(size)) // (3 * (size.max_connections + worker_processes(size)))


def max_wal_size(size: Size) -> int:
    """As much as memory in bytes, from 4 GB (pgtune's web profile) to 16 GB."""
    return _clamp(4 * GB, size.memory // GB * GB, 16 * GB)


def _memory(size: Size) -> list[Setting]:
    group, io = "Memory", "1/64 of memory, 16MB to 512MB"
    return [
        Setting("shared_buffers", format_memory(shared_buffers(size)), "25 % of memory", group),
        Setting(
            "effective_cache_size",
            format_memory(size.memory * 3 // 4 // MB * MB),
            "75 % of memory: what the planner may expect to find cached here and in the operating system",
            group,
        ),
        Setting(
            "maintenance_work_mem",
            format_memory(maintenance_work_mem(size)),
            "1/16 of memory, at most 2GB: building indexes, restoring",
            group,
        ),
        Setting(
            "autovacuum_work_mem",
            format_memory(_clamp(16 * MB, size.memory // 64 // MB * MB, 512 * MB)),
            f"{io}: every autovacuum worker may take this at once, so less than maintenance_work_mem",
            group,
        ),
        Setting(
            "work_mem",
            _step(work_mem(size)),
            "what connections and parallel workers leave of memory, a third of it each, for one sort or hash",
            group,
        ),
        Setting(
            "huge_pages",
            "off",
            "a container can't count on reserved huge pages; with `off` a host without them starts all the"
            " same."
            " On a host of one's own that reserves them: `orcheo-db tune --huge-pages try`",
            group,
        ),
    ]


def _wal(size: Size) -> list[Setting]:
    group, largest = "Write-ahead log and checkpoints", max_wal_size(size)
    buffers = min(shared_buffers(size) // 32, 16 * MB)
    return [
        Setting("wal_level", "replica", "archiving, point-in-time recovery and standbys need it", group),
        Setting("synchronous_commit", "on", "a confirmed workflow run survives a crash", group),
        Setting(
            "wal_compression",
            "lz4",
            "full-page images after a checkpoint shrink several times for little CPU (less to archive, too)",
            group,
        ),
        Setting("wal_buffers", format_memory(buffers), "1/32 of shared_buffers, at most one 16MB segment", group),
        Setting("min_wal_size", format_memory(largest // 4), "segments kept for reuse: 1/4 of max_wal_size", group),
        Setting(
            "max_wal_size",
            format_memory(largest),
            "as memory, 4GB to 16GB: bursts of run history do not force checkpoints; keep as much disk free",
            group,
        ),
        Setting(
            "checkpoint_timeout",
            "15min",
            "fewer full-page images than with 5min; bounds crash recovery to 15 minutes of writes",
            group,
        ),
        Setting(
            "checkpoint_completion_target",
            "0.9",
            "spreads a checkpoint's writes over nearly the whole interval",
            group,
        ),
        Setting(
            "max_wal_senders",
            "10",
            "standbys, base backups and a spare; they do not count as connections",
            group,
        ),
        Setting("max_replication_slots", "10", "one a standby or subscriber", group),
        Setting("wal_keep_size", "1GB", "a standby without a slot may be away for a short while", group),
        Setting(
            "max_slot_wal_keep_size",
            format_memory(4 * largest),
            "4 x max_wal_size: a standby that is gone for good loses its slot before the disk is full",
            group,
        ),
    ]


def _shared_sockets(setting: Setting, spec: Spec) -> Setting:
    """With backups, pgBackRest's own container reaches the server by a directory that the two share."""
    if setting.name != "unix_socket_directories" or not spec.backup.enabled:
        return setting
    why = "where psql looks, and where pgBackRest's container does: the superuser's and the backups' only ways in"
    return Setting(setting.name, f"{setting.value}, {BACKUP_SOCKETS}", why, setting.group)


def _archive(spec: Spec) -> list[Setting]:
    """Continuous archiving (25.3), by pgBackRest."""
    group = "Archiving"
    if not spec.backup.enabled:
        return [
            Setting("archive_mode", "off", "backup.enabled is false: no backups, no point in time to go back to", group)
        ]
    return [
        Setting("archive_mode", "on", "WAL goes to the backup repository: restores to any moment", group),
        Setting(
            "archive_command", f"pgbackrest --stanza={STANZA} archive-push %p", "asynchronous and in parallel", group
        ),
        Setting(
            "archive_timeout",
            f"{spec.backup.archive_timeout}s",
            "a segment that isn't full goes too: bounds what a lost server loses",
            group,
        ),
    ]


def _planner(size: Size) -> list[Setting]:
    group, disk = "Planner", size.storage
    cost = {"ssd": "1.1", "san": "1.1", "hdd": "4"}[disk]
    depth = {"ssd": "200", "san": "300", "hdd": "2"}[disk]
    return [
        Setting(
            "random_page_cost",
            cost,
            f"storage is {disk}: what a random read costs beside a sequential one",
            group,
        ),
        Setting(
            "effective_io_concurrency",
            depth,
            f"storage is {disk}: reads that it serves at once (pgtune)",
            group,
        ),
        Setting("maintenance_io_concurrency", depth, "vacuum and recovery prefetch as deep as queries do", group),
        Setting("default_statistics_target", "100", "PostgreSQL's default; the app's queries are by key", group),
        Setting(
            "jit",
            "off",
            "compiling a query takes longer than the app's short queries run; the image has no LLVM for it",
            group,
        ),
    ]


def _workers(size: Size) -> list[Setting]:
    group, workers = "Worker processes", parallel_workers(size)
    gather = _clamp(1, size.cpus // 2, 4)
    return [
        Setting(
            "max_worker_processes",
            str(worker_processes(size)),
            "parallel workers and 4 for logical replication and extensions",
            group,
        ),
        Setting("max_parallel_workers", str(workers), "one a core", group),
        Setting("max_parallel_workers_per_gather", str(gather), "half the cores, at most 4, for one query", group),
        Setting("max_parallel_maintenance_workers", str(gather), "as many for one index build", group),
    ]


def _autovacuum(size: Size) -> list[Setting]:
    group, fast = "Autovacuum", size.storage != "hdd"
    return [
        Setting(
            "autovacuum_max_workers",
            str(_clamp(3, size.cpus // 2 + 1, 8)),
            "half the cores and one, 3 to 8: a large table does not keep the others waiting",
            group,
        ),
        Setting(
            "autovacuum_naptime",
            "15s",
            "run states and checkpoints are updated often; a look costs little",
            group,
        ),
        Setting(
            "autovacuum_vacuum_scale_factor",
            "0.05",
            "after 5 % dead rows, not 20 %: checkpoints are rewritten all the time and their blobs are large",
            group,
        ),
        Setting(
            "autovacuum_vacuum_insert_scale_factor",
            "0.05",
            "run history is only appended to: freezes it early and in small portions, keeps index-only scans",
            group,
        ),
        Setting("autovacuum_analyze_scale_factor", "0.02", "statistics follow growth after 2 %", group),
        Setting(
            "autovacuum_vacuum_cost_limit",
            "1000" if fast else "400",
            f"storage is {size.storage}: the default 200 dates from slower disks; shared by all workers",
            group,
        ),
        Setting(
            "autovacuum_vacuum_cost_delay",
            "2ms",
            "PostgreSQL's default; named because the limit depends on it",
            group,
        ),
    ]
