"""The errors that are part of the interface.

A user's mistake or a missing prerequisite is one line (what, where, what to do) and exit code 2; an operation that ran and
whose answer is "no" is exit code 1. Anything else is a defect of the toolkit and may show its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Wrong input or a missing prerequisite: one line that says what, where and what to do. Exit code 2."""

    exit_code = 2


class CheckFailed(Exception):
    """The operation ran and the answer is no (a failed check, an incomplete schema). Exit code 1."""

    exit_code = 1


def refused(code: int, words: str) -> UserError | CheckFailed:
    """The error that another program of this toolkit ended with, by its exit code."""
    return (UserError if code == UserError.exit_code else CheckFailed)(words)
