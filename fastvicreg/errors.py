"""The errors of a user's mistake or damaged data; the command line prints their line and exits with code 2."""


class UserError(ValueError):
    """A mistake its user can mend: one line that names the offending value and the way out."""


class DamagedError(UserError):
    """A dataset that is cut short or contradicts itself."""


class DivergedError(UserError):
    """A run whose loss or gradient is no longer finite."""
