"""The one exception that a person's mistake raises."""


class UserError(Exception):
    """A bad option, file or value.

    The message is one sentence that names the thing, says what was wrong and what would be right.
    The commands print it without a traceback and exit with status 2.
    """
