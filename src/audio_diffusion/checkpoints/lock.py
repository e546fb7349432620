"""Lock that lets only one live job use a folder, also when several hosts share it."""

import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_S = 10.0  # interval between heartbeats
DEAD_AFTER_S = 180.0  # time without a heartbeat after which an owner is dead: longer than file servers usually stall


class Locked(ValueError):
    """Another job owns the folder."""


@dataclass(frozen=True)
class Owner:
    """A process that owns a folder, as recorded in the lock.

    Args:
        token: unique id of this acquisition.
        host: host name.
        machine: boot id and process-id namespace; if they equal ours, ``pid`` can be looked up.
        pid: process id.
        started: start time of the process in clock ticks since boot, since process ids are reused.
        job: Slurm's job id, or "".
        life: number of times Slurm has restarted that job.
        since: when it acquired the folder.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    job: str
    life: int
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Returns the owner record of this process."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            job=os.environ.get("SLURM_JOB_ID", ""),
            life=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            since=datetime.now().isoformat(" ", "seconds"),
        )

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """Reads an owner from a lock file; None if there is no lock or it cannot be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def _machine() -> str:
    """Returns the boot id and the process-id namespace; where they are unknown, the host name and "unknown"."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} unknown"


def _started(pid: int) -> str | None:
    """Returns a process's start time in clock ticks since boot; None if it has ended (or is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if sys.platform == "win32":
            return _started_on_windows(pid)
        return None if Path("/proc/self/stat").exists() else _started_by_signal(pid)
    except OSError:
        return None


def _started_on_windows(pid: int) -> str | None:  # pragma: no cover: os.kill would end the process there
    import ctypes

    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined]
    process = kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not process:
        return "" if kernel32.GetLastError() == 5 else None  # access denied: it is another user's
    status = ctypes.c_ulong()
    kernel32.GetExitCodeProcess(process, ctypes.byref(status))
    kernel32.CloseHandle(process)
    return "" if status.value == 259 else None  # STILL_ACTIVE


def _started_by_signal(pid: int) -> str | None:
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class RunLock:
    """Owns a folder while the ``with`` block runs, by a file ``lock`` that names the owner and by a heartbeat.

    The file is created atomically (as a hard link, which is atomic on shared file systems as well). The heartbeat sets
    its modification time, by the file server's clock, every ``BEAT_S`` seconds. An owner is considered dead, and the
    folder is taken over, if its process on this machine has ended, if it was an earlier start of our own Slurm job, or
    if it gave no heartbeat for ``DEAD_AFTER_S``. An owner that resumes after that sees that the folder has been taken,
    and exits at once.

    Args:
        folder: the folder to own; created if it does not exist.

    Raises:
        Locked: on entry, if another process owns it.
    """

    def __init__(self, folder: Path):
        self.path = folder / "lock"
        self.owner = Owner.this_process()
        #: for the log: the previous owner that was found dead, and why
        self.taken_over: str | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "RunLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._clear()
        if self.taken_over:
            # another process that found the same owner dead may have moved our lock away by mistake, and put it back
            time.sleep(0.2)
            if not self._is_ours():
                raise Locked(self._refusal(Owner.read(self.path)))
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f".lock.{self.owner.token}.{what}")

    def _create(self) -> bool:
        """Creates the lock; returns False if there is one already."""
        new = self._beside("new")
        new.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
        try:
            os.link(new, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return self._create_exclusively(new.read_bytes())
        finally:
            new.unlink()
        return True

    def _create_exclusively(self, content: bytes) -> bool:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return True

    def _clear(self) -> None:
        """Removes the lock of a dead owner.

        Raises:
            Locked: if the owner is, or may be, alive.
        """
        found = Owner.read(self.path)
        reason = self._dead(found)
        if reason is None:
            raise Locked(self._refusal(found))
        old = self._beside("old")
        try:
            self.path.rename(old)
        except FileNotFoundError:
            return
        moved = Owner.read(old)
        if moved != found:  # the lock was taken over in between, by a live owner
            self._put_back(old)
            raise Locked(self._refusal(moved))
        old.unlink()
        self.taken_over = f"{found or 'an unknown owner'}: {reason}"

    def _put_back(self, old: Path) -> None:
        try:
            os.link(old, self.path)
        except OSError:
            return  # a third process holds the lock now; the displaced owner sees that at its next heartbeat
        finally:
            old.unlink()

    def _dead(self, owner: Owner | None) -> str | None:
        """Returns why an owner is considered dead; None if it may be alive."""
        age = self._age()
        if age is None:
            return "it is gone"
        if owner is not None:
            mine = self.owner
            if owner.machine == mine.machine:
                return None if _started(owner.pid) == owner.started else "that process has ended"
            if owner.job and owner.job == mine.job and owner.life < mine.life:
                return "it was an earlier start of this job"
        return f"no heartbeat for {age:.0f} s" if age > DEAD_AFTER_S else None

    def _age(self) -> float | None:
        """Returns the seconds since the last heartbeat, by the file server's clock; None without a lock."""
        probe = self._beside("now")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink()

    def _refusal(self, owner: Owner | None) -> str:
        age = self._age()
        beat = f"its last heartbeat was {age:.0f} s ago" if age is not None else "it has just ended"
        return (
            f"run_dir: {self.path.parent} belongs to another job that is running: {owner or 'unknown'}; {beat}. Two "
            f"would overwrite each other's checkpoints: choose another name=, or stop the other one. Should it be "
            f"dead, this folder is free {DEAD_AFTER_S:.0f} s after its last heartbeat"
        )

    def _is_ours(self) -> bool:
        return Owner.read(self.path) == self.owner

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found: Any = Owner.read(self.path)
                if found is not None and found != self.owner:
                    _leave(f"{self.path.parent} was taken over by {found}, because this process sent no heartbeat")
                os.utime(self.path)
            except OSError:
                continue  # the file server stalls; other processes wait for DEAD_AFTER_S before they take over


def _leave(reason: str) -> None:
    """Exits the process without another write; an exception would not reach a main thread that hangs."""
    os.write(2, f"error: {reason}. This one ends, so as not to write into the other's folder\n".encode())
    os._exit(3)
