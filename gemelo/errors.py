"""What can go wrong for a user, in one line each.

Every error a caller can cause or cure is a `GemeloError`: its text names the value, the limit and
the cure. Anything else that escapes is a bug of ours and keeps its traceback. The command line
prints the text and leaves with `exit_code`; a server turns it into a 4xx body.
"""


class GemeloError(Exception):
    """Base of all errors that a user can cause or cure."""

    exit_code = 2


class InputError(GemeloError, ValueError):
    """An argument, a prompt or a message is wrong."""


class FileFormatError(GemeloError, ValueError):
    """A file is broken, truncated, or not what it claims to be."""


class UnsupportedError(GemeloError):
    """A file or request is well-formed but asks for what gemelo does not do."""


class ContextLengthError(InputError):
    """A prompt does not fit the model's context."""


class UnavailableError(GemeloError):
    """Something outside is missing: a network, a hub repository, an optional package."""

    exit_code = 1
