"""The one error that a user's mistake raises; the command line prints its line and exits with code 2."""


class UserError(ValueError):
    """A mistake its user can mend: one line that names the offending value and the way out."""
