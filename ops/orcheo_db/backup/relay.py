"""The second repository's WAL: what comes into the first one's archive is pushed into the second one's, too.

The database knows nothing of it: its archiving waits for no bucket, and it has no bucket's credentials. Segments and timeline histories
are taken over; what has a .partial or a .backup name isn't, no recovery reads it. What is pushed has been read whole from the first
repository and has the checksum that its name says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from orcheo_db.backup import archive, operations
from orcheo_db.backup.config import FIRST, Config
from orcheo_db.backup.engine import PgBackRest
from orcheo_db.backup.operations import Heard
from orcheo_db.backup.running import Stop
from orcheo_db.errors import CheckFailed, UserError
from orcheo_db.secrets import write_private

LOOK = 2.0  # seconds between looks at the first archive: little beside archive_timeout
AGAIN = 30.0  # seconds until what failed is tried again: a bucket that can't be reached is not asked all the time
PRESENT = 3600.0  # seconds before the relay's start: what came earlier, no first backup that is under way needs
AT_ONCE = 4  # segments pushed at the same time: each waits for the bucket more than it works
_HISTORY = re.compile(r"[0-9A-F]{8}\.history")
STATE = "relay.json"


@dataclass(frozen=True)
class Progress:
    """How far it is: `said` is what is wrong, in one line; times are Unix seconds."""

    at: float
    last: str | None = None  # the last segment that was taken over
    last_at: float | None = None
    waiting: int = 0
    waiting_since: float | None = None
    said: str | None = None


def read(config: Config) -> Progress | None:
    """What the relay last noted; None before its first look."""
    file = config.state / STATE
    try:
        return Progress(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CheckFailed(f"{file} is damaged ({error}): remove it, the relay writes it again") from None


class Relay:
    """Pushes what the second archive has not, oldest first. One of them a repository.

    Args:
        first: where the first repository lies.
    """

    def __init__(self, config: Config, say: Heard, *, first: Path = FIRST, scratch: Path = Path("/tmp/relay")) -> None:  # noqa: S108
        self.config, self.say, self.home, self.scratch = config, say, first / "archive" / config.stanza, scratch
        self._source, self._sink = PgBackRest(config, first=True), PgBackRest(config, local=True)
        self._done: set[str] = set()
        # What lies before this segment, on its timeline or an earlier one, is of no use to any backup of the second repository.
        self._since: str | None = None
        # Of the first repository's archive.info: another repository, or cluster, has another.
        self._inode: int | None = None
        self._told: str | None = None
        self._stamps: dict[str, int] = {}
        self._found: dict[str, float] = {}
        self._ready = False
        self.progress = Progress(time.time())

    def forever(self, stop: Stop) -> None:
        """Look and push until told to stop. What goes wrong is said once, noted for `backup check`, and tried again."""
        while not stop.requested:
            try:
                pause = self.look(stop)
            except Exception as error:  # the state's disk is full, for example: nothing may end the relay unseen
                self.say(f"the relay can't note what it does: {type(error).__name__}: {error}")
                pause = AGAIN
            stop.sleep(pause)

    def look(self, stop: Stop) -> float:
        """One round; returns the seconds until the next."""
        said = None
        if not (self.home / "archive.info").is_file():  # the first repository is being made
            return LOOK
        try:
            self._prepare()
            missing = self._missing()
            if missing:
                self._waits(missing)
            said = self._push(missing, stop)
        except (UserError, CheckFailed, OSError) as error:
            said = " ".join(str(error).split())
        except Exception as error:  # a defect must not end the relay unseen
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        if said != self._told:
            self.say(f"the second repository takes no WAL: {said}" if said else "the second repository takes WAL again")
        self._told = said
        self._waits(self._missing() if self._ready else [], said=said)
        return AGAIN if said else LOOK

    def _waits(self, paths: Sequence[str], **more: object) -> None:
        since = min((self._found[path] for path in paths if path in self._found), default=None)
        self._note(waiting=len(paths), waiting_since=since, **more)

    def _note(self, **changes: object) -> None:
        self.progress = Progress(**{**asdict(self.progress), **changes, "at": time.time()})
        write_private(self.config.state / STATE, (json.dumps(asdict(self.progress)) + "\n").encode())

    def _prepare(self) -> None:
        """Once for a cluster: the stanza, and what the bucket has already."""
        inode = (self.home / "archive.info").stat().st_ino
        if self._ready and inode == self._inode:
            return
        self._ready, self._inode = False, inode
        self._done, self._stamps, self._found = set(), {}, {}
        operations.make_stanza(self.config, self.say)
        listed = archive.files(self.config)
        for home, segments in archive.segments(listed).items():
            self._done |= {f"{home}/{segment}" for segment in segments}
        self._done |= {path for path in listed if self._is_history(path)}
        begins = [backup.start_wal for backup in self._sink.info().backups]
        # Without a backup nothing before the present is of use. The present is an hour: the first one may have begun already.
        self._look()
        lately = [path for path, at in self._found.items() if not self._is_history(path) and at > time.time() - PRESENT]
        oldest = min((self._segment(path) for path in lately), default=None, key=lambda segment: segment[8:])
        self._since = min(begins, default=oldest, key=lambda segment: segment[8:])
        self._ready = True

    @staticmethod
    def _segment(path: str) -> str:
        return path.rpartition("/")[2][:24]

    def _key(self, path: str) -> str:
        """How a file is known in the second archive: there its name may have another suffix."""
        return path if self._is_history(path) else f"{path.partition('/')[0]}/{self._segment(path)}"

    def _look(self) -> None:
        """See what is new in the first archive: only directories that changed are read, and they may be expired meanwhile."""
        for home in self._directories(self.home):
            for directory in (home, *self._directories(home)):
                with suppress(FileNotFoundError, NotADirectoryError):
                    stamp = directory.stat().st_mtime_ns
                    if self._stamps.get(str(directory)) == stamp:
                        continue
                    for file in directory.iterdir():
                        self._see(file)
                    # A file may come in the same tick of the file system's clock: an old stamp alone is believed.
                    if time.time_ns() - stamp > 1_000_000_000:
                        self._stamps[str(directory)] = stamp

    @staticmethod
    def _directories(parent: Path) -> list[Path]:
        try:
            return [entry for entry in parent.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []

    def _see(self, file: Path) -> None:
        path = str(file.relative_to(self.home))
        if (archive.WAL.fullmatch(file.name) or self._is_history(path)) and self._key(path) not in self._done:
            with suppress(FileNotFoundError):
                self._found[path] = file.stat().st_mtime

    def _missing(self) -> list[str]:
        """Files of the first archive that the second has not and can use, oldest first."""
        self._look()
        found = [path for path in self._found if self._is_history(path) or self._is_of_use(self._segment(path))]
        return sorted(found, key=lambda path: (not self._is_history(path), self._segment(path)[8:], path))

    def _is_of_use(self, segment: str) -> bool:
        return self._since is None or segment[:8] > self._since[:8] or segment[8:] >= self._since[8:]

    @staticmethod
    def _is_history(path: str) -> bool:
        return _HISTORY.fullmatch(path.rpartition("/")[2]) is not None

    def _push(self, paths: Sequence[str], stop: Stop) -> str | None:
        """Take files over; returns the first thing that went wrong."""
        said: str | None = None
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in range(0, len(paths), AT_ONCE):
                if stop.requested:
                    break
                group = paths[number : number + AT_ONCE]
                failures = [words for words in pool.map(self._try, group) if words]
                said = said or (failures[0] if failures else None)
                good = [path for path in group if self._key(path) in self._done and not self._is_history(path)]
                if good:  # a trouble that is over is not said any more while the rest is sent
                    rest = paths[number + AT_ONCE :]
                    self._waits(rest, last=self._segment(good[-1]), last_at=time.time(), said=said)
                if len(failures) == len(group):
                    break
        return said

    def _try(self, path: str) -> str | None:
        try:
            self._take_over(path)
        except FileNotFoundError:  # expired meanwhile
            self._found.pop(path, None)
            return None
        except (CheckFailed, OSError) as error:
            return " ".join(str(error).split())
        self._done.add(self._key(path))
        self._found.pop(path, None)
        return None

    def _take_over(self, path: str) -> None:
        if not (self.home / path).is_file():
            raise FileNotFoundError(path)
        name = path.rpartition("/")[2]
        content = self._source.get(f"archive/{self.config.stanza}/{path}")
        if match := archive.WAL.fullmatch(name):
            content = decompressed(content, name)
            if hashlib.sha1(content, usedforsecurity=False).hexdigest() != name[25:65]:
                raise CheckFailed(
                    f"WAL segment {match[1]} is damaged in the first repository: it is not taken over (`backup check --deep`)"
                )
            name = match[1]
        directory = self.scratch / threading.current_thread().name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            (directory / name).write_bytes(content)
            self._sink.run("archive-push", str(directory / name))
        finally:
            shutil.rmtree(directory)


def decompressed(content: bytes, name: str) -> bytes:
    """The content of a file of the archive, by its name's suffix.

    Raises:
        CheckFailed: it is damaged, or compressed in a way that this toolkit doesn't use.
    """
    suffix = name[65:]
    if not suffix:
        return content
    if suffix != ".zst":
        raise CheckFailed(f"{name} is compressed in another way than this toolkit does")
    done = subprocess.run(["zstd", "--decompress", "--stdout"], input=content, capture_output=True)
    if done.returncode != 0:
        raise CheckFailed(f"{name} is damaged: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout
