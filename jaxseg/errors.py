"""The errors that a user can cause, as one family: what a command answers with one sentence and exit code 2."""

import reprlib


class UserError(ValueError):
    """Something that the user gave cannot be used; the message is one sentence on what is wrong and what would be right."""


def shortened(value: object) -> str:
    """`repr` of a value from a file, a few dozen characters of it however large, deep or odd the value is."""
    try:
        return reprlib.repr(value)
    # Python refuses to print whole numbers of over 4,300 digits.
    except ValueError:
        return f"a {type(value).__name__} of very many digits"
