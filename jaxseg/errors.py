"""The errors that a user can cause.

Commands report them with one sentence and exit code 2.
"""

import reprlib


class UserError(ValueError):
    """A user's input cannot be used; the message says what is wrong and what would be right."""


class ConfigError(UserError):
    """A configuration cannot be used; the message names the key and the valid values."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxtuple = _REPR.maxlist = 100
_REPR.maxlevel = 3


def shortened(value: object) -> str:
    """Returns the `repr` of a user's value, shortened if the value is very large or deep."""
    try:
        return _REPR.repr(value)[:500]
    # Python refuses to print integers of more than 4,300 digits.
    except ValueError:
        return f"a {type(value).__name__} of very many digits"
