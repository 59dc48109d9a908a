"""Programs that a model wrote and that mean harm: none reaches a file, a process, the network, or much of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokensieve.evaluation.tasks import programs
from tokensieve.evaluation.tasks.programs import check_isolation, program_answer, program_in, run_program
from tokensieve.runs.errors import UserError

try:
    check_isolation()
except UserError as e:
    pytest.skip(str(e), allow_module_level=True)


def test_programs_that_mean_well() -> None:
    assert run_program("print(6 * 7)") == "42\n"
    assert run_program("from fractions import Fraction\nprint(Fraction(1, 3) + 1)") == "4/3\n"
    assert run_program("print('é')") == "é\n"
    assert (
        run_program("from sympy import solve, symbols\nx = symbols('x')\nprint(max(solve(x**2 + 6 - 5 * x, x)))")
        == "3\n"
    )


@pytest.mark.parametrize("code", ["", "x = 1", "1/0", "print(", "raise SystemExit(3)", "import no_such_module"])
def test_programs_without_an_answer(code: str) -> None:
    assert run_program(code) is None


def test_files_are_out_of_sight(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    secret.chmod(0o644)
    assert run_program(f"print(open({str(secret)!r}).read())") is None
    home, source = Path.home(), Path(programs.__file__)
    assert run_program(f"import os\nprint(os.listdir({str(home)!r}))") in (None, "[]\n") or str(
        sys.base_prefix
    ).startswith(str(home))
    assert run_program(f"print(open({str(source)!r}).read())") is None
    assert run_program("print(open('/etc/passwd').read())") is None
    assert run_program("import os\nprint(os.listdir('/proc'))") is None
    seen = run_program("import os\nprint(*os.listdir('/'))")
    assert seen is not None
    assert not {"etc", "proc", "dev", "tmp", "run", "var", "sys"} & set(seen.split())


@pytest.mark.parametrize(
    "path", ["/x", "/tmp/x", "/usr/x", "/usr/lib/x", f"{sys.prefix}/x", f"{sys.prefix}/lib/x", "x"]
)
def test_nothing_is_written(path: str) -> None:
    assert run_program(f"open({path!r}, 'w')\nprint('written')") is None
    assert not Path(path).exists()
    assert run_program(f"import os\nos.mkdir({path!r})\nprint('made')") is None
    assert not Path(path).exists()


def test_nothing_is_removed() -> None:
    code = f"import os\nos.remove({sys.prefix + '/pyvenv.cfg'!r})\nprint('removed')"
    existed = os.path.exists(sys.prefix + "/pyvenv.cfg")
    assert run_program(code) is None
    assert os.path.exists(sys.prefix + "/pyvenv.cfg") == existed


def test_no_network() -> None:
    """A listener of this very machine: a network namespace of its own has another loopback."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert (
            run_program(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nprint('connected')")
            is None
        )
    assert run_program("import socket\nprint(socket.create_connection(('192.0.2.1', 80), 1))") is None
    name = f"tokensieve-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        code = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0{name}')\nprint('connected')"
        assert run_program(code) is None


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.fork()\nprint('forked')",
        "import threading\nthreading.Thread(target=print).start()\nprint('started')",
        "import subprocess\nprint(subprocess.run(['/usr/bin/id']))",
        "import os\nwhile True:\n    os.fork()",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))\nprint('raised')",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nprint('raised')",
    ],
)
def test_no_second_process_and_no_wider_limits(code: str) -> None:
    assert run_program(code) is None


def test_no_privileges() -> None:
    """Neither root's, nor those that a user namespace gives inside: with them a mount would put files back in sight."""
    code = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.{})"
    for call in ("mount(b'none', b'/usr', b'tmpfs', 0, None)", "umount2(b'/usr', 2)", "chroot(b'/usr')", "unshare(0x20000)",
                 "unshare(0x10000000)", "sethostname(b'x', 1)"):  # fmt: skip
        assert run_program(code.format(call)) == "-1\n", call
    assert run_program("import os\nos.setuid(0)\nprint(os.getuid())") in (None, "0\n")
    seen = run_program("import os, signal\nprint(os.getpid())\nfor p in range(2, 999):\n    try:\n        os.kill(p, 0)\n"
                       "        print('sees', p)\n    except ProcessLookupError:\n        pass")  # fmt: skip
    assert seen == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n    pass",
        "9**9**9**9",
        "print(len('x' * 10**10))",
        "x = []\nwhile True:\n    x.append(bytearray(10**8))",
        "while True:\n    print('x' * 10000)",
        "import time\ntime.sleep(999)\nprint('awake')",
        "import os, time\nos.setsid()\ntime.sleep(999)",
        "import signal, time\nfor s in (1, 2, 15):\n    signal.signal(s, signal.SIG_IGN)\ntime.sleep(999)",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    ],
)
def test_time_memory_and_output_have_an_end(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of processor time and two on the clock in place of ten and forty; one for what only sleeps."""
    monkeypatch.setattr(programs, "_LIMITED", programs._LIMITED.replace("CPU=10", "CPU=1"))
    monkeypatch.setattr(programs, "SECONDS", 0.25 if "sleep" in code else 0.5)
    assert run_program(code) is None
    assert not left_over()


def left_over() -> list[str]:
    """Programs that still run. What was killed a moment ago may take one to go."""
    import psutil

    for _ in range(50):
        found = [
            p.info["cmdline"]
            for p in psutil.process_iter(["cmdline"])
            if "RLIMIT_" in " ".join(p.info["cmdline"] or [])
        ]
        mine = [c for c in found if "CPU=1," in " ".join(c)]
        if not mine:
            return []
        time.sleep(0.02)
    return mine


def test_memory_is_limited() -> None:
    assert run_program("print(len(bytearray(10**8)))") == "100000000\n"
    assert run_program("print(len(bytearray(3 * 10**9)))") is None


def test_what_a_program_sees_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token in the environment is the first thing that is looked for."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = run_program(
        "import os\nprint(dict(os.environ))\nprint(os.listdir('/dev') if os.path.isdir('/dev') else 'no dev')"
    )
    assert seen is not None
    assert "secret" not in seen
    assert "no dev" in seen


def test_an_answer_is_the_last_line_that_is_printed() -> None:
    assert program_answer("\nprint('working')\nprint(7.0)\n", "7", "number") == ("7.0", True, True)
    assert program_answer("\nprint(8)\n```\nwhich is 7", "7", "number") == ("8", True, False)
    assert program_answer("```python\nprint(1)\n```\nso\n```python\nprint(7)\n```", "7", "number") == ("7", True, True)
    assert program_answer("\n1/0\n", "7", "number") == (None, False, False)
    assert program_answer("", "7", "number") == (None, False, False)
    assert program_in("```python\nprint(1)") == "\nprint(1)"


def test_an_ordinary_user(tmp_path: Path) -> None:
    """Root needs no user namespace, others do: the other way of the two than the one that runs these tests."""
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    if not Path("/usr/bin/python3").exists():
        pytest.skip("there is no python that an ordinary user could start")
    code = (
        "import os, sys, psutil\n"
        "from tokensieve.evaluation.tasks.programs import check_isolation, run_program\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.executable, sys.prefix, sys.base_prefix = '/usr/bin/python3', '/usr', '/usr'\n"
        "check_isolation()\nprint(run_program('print(6 * 7)'), run_program('import os; os.fork(); print(1)'), "
        "run_program('print(open(\"/etc/passwd\").read())'), run_program('import os; os.mkdir(\"/x\"); print(1)'))"
    )
    root = str(Path(programs.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if "does not allow namespaces" in done.stderr:
        pytest.skip("this machine gives ordinary users no namespaces")
    assert done.stdout == "42\n None None None\n", done.stderr


def test_it_is_refused_where_there_is_no_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_command", lambda root: ["false"])
    with pytest.raises(UserError, match="programs: this machine does not allow namespaces"):
        check_isolation()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="which are not here"):
        check_isolation()
