"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, with their HTTP statuses."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from titans_seq.errors import UserError


class ApiError(HTTPException):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: what is wrong, and what would be right.
        code: a word for programs.
        param: the request's field that is wrong.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return error_body(self.status_code, self.detail, self.code, self.param)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kinds = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _response(body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: what it quotes of a request need not be Unicode."""
    return Response(json.dumps(body), status, headers, "application/json")


def response_of(error: ApiError) -> Response:
    """The answer that tells an error."""
    return _response(error.body, error.status_code, error.headers)


def as_api_error(error: Exception) -> ApiError:
    """What is told of an error in the work of a request; of a bug nothing but that it was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(422, str(error), "unusable")
    return ApiError(500, "the server failed on this request; its log says how.", "internal_error")


def install(app: FastAPI) -> None:
    """Have every error of the application answered in OpenAI's form."""

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ApiError):
            return response_of(error)
        if error.status_code == 400:  # FastAPI gives up on a body before it is looked at
            return _response(error_body(400, "the body cannot be read as JSON in UTF-8, as it came (not compressed).", "invalid_json"), 400)
        return _response(error_body(error.status_code, f"{request.url.path}: {error.detail}"), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _response(error_body(400, f"the body is no JSON: {first['ctx']['error']}", "invalid_json"), 400)
        if first["loc"] == ("body",) and isinstance(first["input"], bytes):  # FastAPI reads what says that it is JSON alone
            kind = request.headers.get("content-type", "none")
            message = f"the body's Content-Type is '{kind}': send JSON with 'Content-Type: application/json'."
            return _response(error_body(415, message, "unsupported_media_type"), 415)
        param = first.get("ctx", {}).get("param") or ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str))
        message = f"unknown parameter {param!r}" if first["type"] == "extra_forbidden" else f"{param or 'body'}: {first['msg']}"
        return _response(error_body(400, message, first["type"], param or None), 400)

    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> Response:
        return response_of(as_api_error(error))

    @app.exception_handler(ClientLeftError)
    @app.exception_handler(ClientDisconnect)
    async def of_nobody(request: Request, error: Exception) -> Response:
        return _response(error_body(499, "the client has left"), 499)  # which nobody reads

    @app.exception_handler(Exception)
    async def of_bug(request: Request, error: Exception) -> Response:
        return response_of(as_api_error(error))
