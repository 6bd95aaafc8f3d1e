"""Who writes a file: names of processes that other processes, and other machines, can tell apart."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process, as it is written down for others."""

    host: str
    pid: int
    started: str = ""
    """When it was started, in the system's own count; "" where that is not known."""
    namespace: str = ""
    """In which its id counts: containers of one host have ids of their own."""

    @classmethod
    def this(cls) -> Process:
        """Return the running process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), _namespace())

    def is_near(self) -> bool:
        """Tell whether it ran on this machine, so that one can see whether it lives."""
        return self.host == socket.gethostname() and self.namespace == _namespace()

    def lives(self) -> bool:
        """Tell whether it lives still; only of one that is near."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            return True  # somebody else's
        return self.started in ("", _started(self.pid))  # else its id was given to another

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
