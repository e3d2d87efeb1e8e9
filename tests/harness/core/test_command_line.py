"""Errors of commands become messages and exit codes in one place."""

from __future__ import annotations

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
