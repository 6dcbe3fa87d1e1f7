"""Errors as OpenAI's API tells them, and what becomes one."""

import json
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mmgpt.errors import DataError, MediaError, MmgptError
from mmgpt.processor import TooLongError
from mmgpt.serving.worker import EngineError


class APIError(Exception):
    """An error with its HTTP status; `param` is the parameter at fault, `code` what programs go by."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> str:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error})

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def as_api_error(error: Exception) -> APIError:
    """What a client is told of an error; of one that is no fault of his, no more than that."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, TooLongError):
        return APIError(400, _one_line(error), code="context_length_exceeded")
    if isinstance(error, MediaError | DataError):
        return APIError(400, _one_line(error), code="invalid_content")
    if isinstance(error, MmgptError):
        return APIError(400, _one_line(error))
    if isinstance(error, UnicodeEncodeError):
        return APIError(400, "a text holds half a surrogate pair, which is no character; send valid Unicode")
    if isinstance(error, HTTPException):
        return APIError(error.status_code, _one_line(error.detail), headers=error.headers)
    return APIError(500, str(error) if isinstance(error, EngineError) else "the server failed; its log says why")


def _invalid(error: RequestValidationError) -> APIError:
    """The first thing that is wrong with the parameters."""
    first = error.errors()[0]
    place = [str(key) for key in first["loc"][1:]]
    param = _one_line(".".join(place)) or None
    if first["type"] == "json_invalid":
        return APIError(400, f"the body is not JSON: {first['ctx']['error']}")
    if param is None and first["type"] in ("missing", "model_attributes_type", "dict_type"):
        return APIError(400, "the body is not a JSON object; send one, as application/json")
    reason = {
        "extra_forbidden": "is not supported here; leave it out",
        "missing": "is missing",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return APIError(400, _one_line(f"{param}: {reason}" if param else reason), param)


def tell_errors(app: FastAPI) -> None:
    """Have every error of the app told as OpenAI's API does."""

    async def told(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    for kind in (
        APIError,
        RequestValidationError,
        HTTPException,
        MmgptError,
        UnicodeEncodeError,
        EngineError,
        Exception,
    ):
        app.add_exception_handler(kind, told)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
