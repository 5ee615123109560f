"""The status file of a run, and the lock of the process that trains it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from router_lab.errors import UserError
from router_lab.runs.schema import Status

HEARTBEAT = 20.0  # seconds
_WRITING = threading.Lock()


class Busy(UserError):
    """Another process is training this run."""


def is_finished(folder: Path) -> bool:
    """Whether the run has its result, which is written last, by a rename."""
    return bool(read_json(folder / "result.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty if there is none."""
    return read_record(path)[0]


def read_record(path: Path) -> tuple[dict[str, Any], str | None]:
    """The object in the file, and why it could not be read; {} and None for a missing file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        return {}, f"{path.name} cannot be read ({error})"
    if isinstance(record, dict):
        return record, None
    return {}, f"{path.name} contains no JSON object"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file atomically: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1))
    draft.replace(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def write_status(folder: Path, **fields: Unpack[Status]) -> None:
    """Updates these fields of status.json, and the time in `updated`."""
    path = folder / "status.json"
    with _WRITING:
        write_json(path, {**read_json(path), **fields, "updated": now()})


@contextlib.contextmanager
def heartbeat(folder: Path) -> Iterator[None]:
    """Keeps `updated` of status.json fresh during the block.

    It shows other machines, which may not see our lock, that the run is alive.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                write_status(folder)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_locked(folder: Path) -> bool:
    """Whether a process on this machine is training the run."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks the run. The kernel releases the lock however the process ends.

    Raises:
        Busy: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        for attempt in range(10):  # `is_locked` of another launch may hold it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02 * attempt)
        else:
            file.seek(0)
            raise Busy(f"{folder} is being trained by another process ({file.read().strip()}).")
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def describe(error: BaseException) -> str:
    """A failure in one line."""
    text = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, UserError):
        return text
    if isinstance(error, SystemExit):
        return f"it called exit({text if str(error) else 0})"
    return f"{type(error).__name__}: {text}"
