"""A command in a fork of the warm process, seen from outside as if it were this one; see warm.py.

python -ISE warm_client.py SOCKET PROGRAM ARGUMENT...
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys

HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT")


def main(path: str, program: str, arguments: list[str]) -> None:
    if "PYTHONHASHSEED" in os.environ or any("resource_tracker" in word for word in arguments):
        os.execv(sys.executable, [sys.executable, *arguments])  # what a fork cannot have, and what is light
    numbers = [signal.Signals[name] for name in HANDED_ON]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    warm = socket.socket(socket.AF_UNIX)
    files = [n for n in files if n != warm.fileno() and is_open(n)]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "files": files,
        "folder": os.getcwd(),
        "program": program,
    }
    text = json.dumps(request).encode()
    warm.connect(path)
    socket.send_fds(warm, [len(text).to_bytes(4, "little")], files)
    warm.sendall(text)
    for number in files:
        os.close(number)
    command = told(warm)
    send = os.killpg if os.getpgrp() == os.getpid() else os.kill  # a signal to a whole group is for the command's too

    def hand_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            send(command, number)

    for number in numbers:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    end(told(warm))


def is_open(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False  # the listing's own


def told(warm: socket.socket) -> int:
    number = warm.recv(4, socket.MSG_WAITALL)
    return struct.unpack("i", number)[0] if number else -signal.SIGKILL


def end(code: int) -> None:
    """As the command did."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main(sys.argv[1], sys.argv[2], sys.argv[3:])
