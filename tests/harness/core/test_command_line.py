"""Errors of commands become messages and exit codes in one place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from harness.core.command_line import exit_codes
from harness.core.errors import DataError, SettingsError, format_error


def ends(error: BaseException, *, resumes: bool = False) -> int:
    """Run a command that raises ``error`` and return its exit code."""

    @exit_codes("tool", resumes=resumes)
    def main() -> int:
        raise error

    return main()


def test_the_exit_code_of_a_command_is_kept() -> None:
    """Without an error, the command's own code, arguments and docstring pass through."""

    @exit_codes("tool")
    def main(code: int) -> int:
        """Do it."""
        return code

    assert (main(0), main(code=3), main.__doc__) == (0, 3, "Do it.")


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A message of several lines, quoted from a library, becomes one line with the command's name."""
    assert ends(DataError("cannot be read:\n  line 3\n  is odd")) == 2
    assert capsys.readouterr().err == "tool: cannot be read: line 3 is odd\n"


def test_control_characters_of_foreign_files_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A message may quote a column or a name from a file."""
    assert ends(DataError("no column 'label' (columns: \x1b[2Jtext)")) == 2
    assert capsys.readouterr().err == "tool: no column 'label' (columns: \\x1b[2Jtext)\n"


def test_several_problems_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings errors list all problems, and each line has the command's name."""
    assert ends(SettingsError("a is\nwrong", "b is wrong")) == 2
    assert capsys.readouterr().err == "tool: a is wrong\ntool: b is wrong\n"


def test_an_interrupt_gives_advice_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt gives 130; only commands that can resume advise it."""
    assert ends(KeyboardInterrupt()) == ends(KeyboardInterrupt(), resumes=True) == 130
    assert capsys.readouterr().err == "tool: stopped\ntool: stopped; run the same command again to resume\n"


def test_a_bug_keeps_its_traceback() -> None:
    """Other exceptions are not caught."""
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_errors_of_libraries_keep_their_type() -> None:
    """The type of a library's error is part of the message, which is cut to its first line."""
    assert format_error(ValueError("no\nmore")) == "ValueError: no"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "nothing more can be written"),
        (RuntimeError("serialization: I/O error: File too large (os error 27)"), "nothing more can be written"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory (MemoryError: Unable to allocate 9 GiB)"),
    ],
)
def test_a_full_disk_or_memory_is_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it happens, also while printing."""
    assert ends(error) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tool: {words}")


def test_other_errors_of_the_system_are_bugs() -> None:
    """A missing file that no code expected keeps its traceback."""
    with pytest.raises(FileNotFoundError):
        ends(FileNotFoundError(2, "No such file"))


def python(code: str, *, send: signal.Signals | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; ``send`` it a signal after its first line of output."""
    process = subprocess.Popen(
        # A shell starts commands in the background with interrupts ignored, and a child inherits that.
        [sys.executable, "-c", f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="ascii",
        errors="replace",
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    first = process.stdout.readline() if send else ""
    if send:
        process.send_signal(send)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(code, process.returncode, first + out, err)


def command(body: str) -> str:
    """Return code of a command with this body."""
    return (
        "import sys, time\nfrom harness.core.command_line import exit_codes\n"
        f"@exit_codes('tool', resumes=True)\ndef main():\n    {body}\n    return 0\nsys.exit(main())"
    )


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp1252"])
def test_what_a_terminal_cannot_show_is_escaped(encoding: str) -> None:
    """Results, messages and names print in any encoding."""
    done = python(
        command(r"print('\u4e66 \u00d7 \u2026 \U0001f642 \udc80')"),
        PYTHONIOENCODING=f"{encoding}:strict",
        PYTHONUTF8="0",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_interrupt(kind: signal.Signals) -> None:
    """A scheduler's SIGTERM and a closed terminal are handled as Ctrl+C: clean-up runs, one line, exit code 130."""
    body = "try:\n        print('on', flush=True)\n        time.sleep(60)\n    finally:\n        print('cleaned')"
    done = python(command(body), send=kind)
    assert (done.returncode, done.stdout) == (130, "on\ncleaned\n")
    assert done.stderr == "tool: stopped; run the same command again to resume\n"


def test_an_ignored_signal_stays_ignored() -> None:
    """``nohup`` ignores SIGHUP for its command."""
    body = "print('on', flush=True)\n    time.sleep(0.3)"
    done = python("import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + command(body), send=signal.SIGHUP)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["harness.cli", "suites"])
def test_an_interrupt_while_importing_has_no_traceback(package: str) -> None:
    """Before the command itself runs, an interrupt ends the process with one line."""
    done = python(f"import {package}, time\nprint('on', flush=True)\ntime.sleep(60)", send=signal.SIGINT)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "stopped\n"
