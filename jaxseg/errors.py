"""The errors that a user can cause, as one family: what a command answers with one sentence and exit code 2."""

import reprlib


class UserError(ValueError):
    """Something that the user gave cannot be used; the message is one sentence on what is wrong and what would be right."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the key and what would be right."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxtuple = _REPR.maxlist = 100
_REPR.maxlevel = 3


def shortened(value: object) -> str:
    """`repr` of a value that a user gave, bounded however large, deep or odd the value is."""
    try:
        return _REPR.repr(value)[:500]
    # Python refuses to print whole numbers of over 4,300 digits.
    except ValueError:
        return f"a {type(value).__name__} of very many digits"
