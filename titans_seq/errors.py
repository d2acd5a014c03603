"""The one error type for what a user can mend: shown by the command line without a traceback."""


class UserError(ValueError):
    """Input or a setting that cannot be used. The message says what is wrong, where, and what would be right."""
