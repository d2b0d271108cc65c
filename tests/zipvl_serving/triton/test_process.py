"""Runs of the server, with small scripts in its place: why it ended, and that nothing of it is left."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.bundles import refusal

from zipvl_serving.errors import ZipvlError
from zipvl_serving.triton.process import ServerProcess

PATIENCE_S = 30.0


def run(program: str, log: io.StringIO | None = None, **environment: str) -> ServerProcess:
    """A Python program in the server's place; the server's own options are its arguments."""
    return ServerProcess([sys.executable, "-c", textwrap.dedent(program)], environment, log)


def ended(process: ServerProcess) -> ServerProcess:
    deadline = time.monotonic() + PATIENCE_S
    while not process.ended:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def wait_for(log: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in log.getvalue():
        assert time.monotonic() < deadline, log.getvalue()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            r"""E1 model.cc:1] "failed to load 'bad' version 1: Internal: TritonModelException: no bundle\n\nAt:\n x"
error: creating server: Internal - failed to load all models""",
            "model bad: no bundle",
        ),
        (
            """E1 main.cc:1] "failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use " """,
            "failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use",
        ),
        (
            "tritonserver: error while loading shared libraries: libb64.so.0: cannot open shared object file",
            "error while loading shared libraries: libb64.so.0: cannot open shared object file",
        ),
        ("error: creating server: Internal - out of luck", "creating server: Internal - out of luck"),
        ("I1 all is well\n", "exit status 3; its last line: I1 all is well"),
        ("", "exit status 3; its last line: it said nothing"),
    ],
)
def test_the_reason_is_the_servers_own(said: str, reason: str) -> None:
    process = ended(run("import os, sys; print(os.environ['SAID'], file=sys.stderr); sys.exit(3)", SAID=said))
    assert process.reason() == reason
    process.end(0)


def test_a_killed_server_says_nothing() -> None:
    process = run("print('error: an old story', flush=True); import time; time.sleep(60)")
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process).reason() == "it was killed (SIGKILL)"
    process.end(0)


def test_a_missing_program_is_one_line(tmp_path: Path) -> None:
    with refusal(ZipvlError, tmp_path / "tritonserver", "cannot be started: No such file"):
        ServerProcess([tmp_path / "tritonserver"], {})


def test_output_goes_to_the_log_even_if_that_breaks() -> None:
    log = io.StringIO()
    process = run("print('one', flush=True); input_ = open('/dev/stdin').read(); print('two' + input_)", log)
    ended(process).end(0)
    assert log.getvalue() == "one\ntwo\n"
    closed = io.StringIO()
    closed.close()
    process = ended(run("print('error: heard')", closed))
    assert process.reason() == "heard"
    process.end(0)


CHILDREN = """
    import os, subprocess, sys, time
    region = sys.argv[1].partition('shm-region-prefix-name=')[2]
    open(f'/dev/shm/{region}1', 'w').close()
    stub = subprocess.Popen([os.environ['STUB'], os.environ['MODEL']])
    other = subprocess.Popen(['sleep', '60'])
    print(region, stub.pid, other.pid, 'started', flush=True)
    time.sleep(60)
"""


def test_stubs_are_found_by_model_and_nothing_is_left(tmp_path: Path) -> None:
    stub = tmp_path / "triton_python_backend_stub"  # only waits: nobody writes to the pipe that it reads
    shutil.copyfile("/bin/cat", stub)
    stub.chmod(0o755)
    model = tmp_path / "tiny" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    os.mkfifo(model)
    log = io.StringIO()
    process = run(CHILDREN, log, STUB=str(stub), MODEL=str(model))
    wait_for(log, "started")
    region, pid, other, _ = log.getvalue().split()
    assert process.stubs() == {int(pid): "tiny"}
    assert list(Path("/dev/shm").glob(f"{region}*"))
    os.kill(int(pid), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while process.stubs():  # a dead one that nobody has waited for does not count
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert Path(f"/proc/{pid}").exists()
    process.end(0)
    assert not process.stubs()
    assert not list(Path("/dev/shm").glob(f"{region}*"))
    for gone in (process.pid, int(pid), int(other)):
        state = Path(f"/proc/{gone}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_it_may_end_by_itself_first() -> None:
    log = io.StringIO()
    process = run(
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('bye')); "
        "print('set', flush=True); time.sleep(60)", log,
    )  # fmt: skip
    wait_for(log, "set")
    process.end(PATIENCE_S)
    assert "bye" in log.getvalue()


def test_it_is_killed_when_it_does_not_end() -> None:
    log = io.StringIO()
    process = run(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); time.sleep(60)",
        log,
    )
    wait_for(log, "set")
    process.end(0.05)
    assert process.ended
    process.end(0.05)  # once more does no harm
