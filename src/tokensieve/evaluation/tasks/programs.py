"""Answers that are programs: run one at a time, where it can reach nothing, and only if somebody asked for that.

What a model writes is nobody's code. Each program runs as a Python of its own in namespaces of its own (``unshare`` of
util-linux): no network, no other processes in sight, of the file system the interpreter's folders and /usr, read-only; without
privileges; with limits on processor time, memory, output, open files, and no second process or thread. Where a machine does
not allow this it is refused. What is not kept from it is the kernel: there is no filter of system calls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ...runs.errors import UserError
from .answers import Found, is_right
from .catalogue import Answers

SECONDS = 10
"""Of processor time; four times as many on the clock."""
MEMORY = 2 << 30
"""Bytes of address space."""
OUTPUT = 1 << 16
"""Bytes of what a program prints."""
_NOBODY = "65534"

# Set by the program's own interpreter, when nothing is left to be imported for them. Without a process of its own to spare,
# fork, threads and exec of another program fail.
_LIMITED = f"""
import resource, sys
code = sys.stdin.buffer.read().decode("utf-8", "replace")
for name, value in dict(CPU={SECONDS}, AS={MEMORY}, FSIZE={OUTPUT}, NOFILE=64, NPROC=0, CORE=0, MSGQUEUE=0, MEMLOCK=0).items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
exec(compile(code, "program", "exec"), {{"__name__": "__main__"}})
"""

# $1: an empty folder that becomes the root; then the folders to see, then -- and the command.
_ROOT = r"""
set -e
root=$1; shift
mount --make-rprivate /
mount -t tmpfs -o size=1m,mode=755,nosuid,nodev tmpfs "$root"
for d in /bin /sbin /lib /lib32 /lib64; do
    if [ -L "$d" ]; then ln -s "$(readlink "$d")" "$root$d"; elif [ -d "$d" ]; then set -- "$d" "$@"; fi
done
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro,nosuid,nodev "$root$1"
    shift
done
shift
mount -o remount,bind,ro,nosuid,nodev "$root"
cd "$root"
exec chroot "$root" "$@"
"""


def check_isolation() -> None:
    """UserError where programs cannot be run without network and out of sight of files and processes."""
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "setpriv", "mount", "chroot"))):
        raise UserError(
            "programs: they are run in namespaces of Linux by unshare, setpriv, mount and chroot, which are not here"
        )
    if run_program("print(6 * 7)") != "42\n":
        raise UserError(
            "programs: this machine does not allow namespaces (unshare of user, mount, network and process ids), without which "
            "no program of a model is run; a container needs to be started with leave for them"
        )


def run_program(code: str) -> str | None:
    """What it prints, at most OUTPUT bytes; None if it fails, takes too long or too much, or prints nothing."""
    with tempfile.TemporaryDirectory(prefix="tokensieve-") as root, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            _command(root),
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "HOME": "/", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
            cwd="/",  # else PWD tells where the user is
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(code.encode("utf-8", "replace"), timeout=4 * SECONDS)
        finally:
            _end(process)
        printed.seek(0)
        text = printed.read(OUTPUT).decode("utf-8", "replace")
    return text if process.returncode == 0 and text.strip() else None


def program_in(text: str) -> str | None:
    """The last block of code that is marked as Python; without one the text up to the end of the prompt's own block."""
    blocks = text.split("```python")
    code = blocks[-1].split("```")[0]
    return code if code.strip() else None


def program_answer(text: str, gold: str, answers: Answers) -> tuple[str | None, bool, bool]:
    """(the last line that the program in ``text`` prints, whether there is one, whether it is right)."""
    code = program_in(text)
    printed = None if code is None else run_program(code)
    if printed is None:
        return None, False, False
    found = Found(printed.strip().split("\n")[-1].strip()[:1000], True)
    return found.answer, True, is_right(found.answer, gold, answers)


def _command(root: str) -> list[str]:
    """As root without a user namespace, since the limit of processes does not bind root, whatever it is called inside."""
    privileged = os.geteuid() == 0
    alone = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    user = [] if privileged else ["--user", "--map-root-user"]
    nobody = ["--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"] if privileged else []
    bare = ["/usr/bin/setpriv", *nobody, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    python = [
        os.path.realpath(sys.executable) if sys.prefix == sys.base_prefix else sys.executable,
        "-I",
        "-c",
        _LIMITED,
    ]
    return [*alone, *user, "sh", "-c", _ROOT, "sh", root, *_folders(), "--", *bare, *python]


def _folders() -> list[str]:
    """What the interpreter needs to see, each once and none inside another."""
    links = (str(Path(sys.executable).parent), str(Path(os.path.realpath(sys.executable)).parents[1]))
    wanted = {p for p in ("/usr", sys.prefix, sys.base_prefix, *links) if Path(p).is_dir()} - {"/"}
    return sorted(p for p in wanted if not any(p != q and Path(p).is_relative_to(q) for q in wanted))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left, by its number: it may have left its group. A namespace's first process takes all others along."""
    import psutil

    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
