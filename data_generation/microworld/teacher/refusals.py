"""Why a request gets no answer."""


class Unanswerable(ValueError):
    """A request that has no answer, in words for whoever sent it.

    Args:
        status: of HTTP.
        code: as the API has them.
    """

    def __init__(self, message: str, status: int = 400, code: str = "invalid_request"):
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else None
        kind = kind or "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}
