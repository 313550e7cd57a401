"""Root where user namespaces are refused: servers run as ``nobody``, who must reach the programs and the data.

No user is made and no foreign directory's permissions are changed: programs out of reach are copied, data out of reach
is an error.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from shardkit.errors import LocalClusterError

CACHE = Path("/var/tmp")  # noqa: S108  the directory is checked to be ours before it is used


def give(path: Path) -> None:
    """Make ``nobody`` the owner of *path*, which we made."""
    entry = pwd.getpwnam("nobody")
    os.chown(path, entry.pw_uid, entry.pw_gid)


def check_reach(home: Path) -> None:
    """Let ``nobody`` pass through *home*, which is ours; LocalClusterError where a parent bars the way."""
    if barred := _barred(home.parent / "x"):
        raise LocalClusterError(
            f"this system refuses user namespaces, so the servers must run as 'nobody', who cannot enter {barred}; "
            "nothing was started. Choose a data directory elsewhere, e.g. under /var/tmp, or run as a normal user"
        )
    home.chmod(0o711)


def reachable(program: Path) -> Path:
    """*program*, or a copy of it and its package where ``nobody`` can run it. Raises LocalClusterError."""
    program = program.resolve()
    if not _barred(program):
        return program
    package = next((p for p in program.parents if p.parent.name in {"site-packages", "dist-packages"}), None)
    if package is None:
        raise LocalClusterError(f"'nobody' cannot enter {_barred(program)} to run {program.name}; nothing was started")
    about = program.stat()
    mark = hashlib.sha256(f"{program} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:12]
    copy = CACHE / f"shardkit-{os.geteuid()}-{mark}"
    if not copy.exists():
        _copy_package(package, copy)
    about = copy.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise LocalClusterError(f"{copy} is not ours or others may write to it; nothing was started. Remove it")
    return copy / program.relative_to(package.parent)


def _copy_package(package: Path, copy: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=CACHE))
    try:
        # A wheel's shared libraries lie beside its package and are found relative to the program.
        python = shutil.ignore_patterns("__pycache__", "*.py")
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, new / part.name, symlinks=True, ignore=python)
        new.chmod(0o755)
        new.rename(copy)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not copy.exists():  # else another start was faster
            raise


def _barred(path: Path) -> Path | None:
    """The first directory on the way to *path* that others may not pass."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & stat.S_IXOTH), None)
