"""Errors that callers see. Each class owns its HTTP status, its code and whether a retry can help.

Every error pickles (it crosses Ray actors) because all of its state is in `args`.
"""


class PlatformError(Exception):
    """Base of all errors that a caller may see. The message says: value seen, value wanted, next step."""

    status = 500
    code = "internal"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        return str(self.args[0])


class InvalidRequest(PlatformError):
    """A value that can never work. `field` is the dotted path of the offending field, if one is known."""

    status = 422
    code = "invalid_request"

    def __init__(self, message: str, field: str = "") -> None:
        Exception.__init__(self, message, field)

    @property
    def field(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Unauthenticated(PlatformError):
    status = 401
    code = "unauthenticated"


class Forbidden(PlatformError):
    status = 403
    code = "forbidden"


class NotFound(PlatformError):
    """Unknown id, or another tenant's id: the two look the same from outside."""

    status = 404
    code = "not_found"


class Conflict(PlatformError):
    """The state is not what the caller assumed. `current_version` is the version to retry with, if any."""

    status = 409
    code = "conflict"

    def __init__(self, message: str, current_version: int | None = None) -> None:
        Exception.__init__(self, message, current_version)

    @property
    def current_version(self) -> int | None:
        return self.args[1]  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return self.message


class TooLarge(PlatformError):
    status = 413
    code = "too_large"


class RateLimited(PlatformError):
    """`retry_after_s`: seconds until the caller may try again."""

    status = 429
    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        Exception.__init__(self, message, retry_after_s)

    @property
    def retry_after_s(self) -> float:
        return float(self.args[1])

    def __str__(self) -> str:
        return self.message


class Unavailable(PlatformError):
    """A dependency is down or overloaded; `retry_after_s` says when to come back."""

    status = 503
    code = "unavailable"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        Exception.__init__(self, message, retry_after_s)

    @property
    def retry_after_s(self) -> float:
        return float(self.args[1])

    def __str__(self) -> str:
        return self.message


class Overloaded(Unavailable):
    """There is more to do than can be done. Trying again at once makes it worse."""

    code = "overloaded"


class DeadlineExceeded(PlatformError):
    status = 504
    code = "deadline_exceeded"
    retryable = True
