"""The routes."""

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, BinaryIO

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from domains.text.serve.answer import Answer, event
from domains.text.serve.errors import ApiError, ClientLeftError, as_api_error, install
from domains.text.serve.guards import CheckKey, LimitBody
from domains.text.serve.schema import CompletionRequest, NewSession
from domains.text.serve.service import Service
from domains.text.serve.work import Step

log = logging.getLogger("titans_seq.serve")


def build_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The application of a service, which ends with it. api_key: what every request but /health must name; None for none."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="titans-seq", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(LimitBody, limits=service.limits, max_state_bytes=service.max_state_bytes)
    if api_key is not None:
        app.add_middleware(CheckKey, api_key=api_key)  # the last one added is asked first
    install(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return service.health()

    app.include_router(_model_routes(service), prefix="/v1")
    app.include_router(_session_routes(service), prefix="/v1/sessions")
    return app


def _model_routes(service: Service) -> APIRouter:
    router = APIRouter()
    model = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "titans-seq"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}")
    async def model_of(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"this server's model is {service.name!r}, not {name[:200]!r}.", "model_not_found", "model")
        return model

    @router.post("/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> JSONResponse | StreamingResponse:
        job = await run_in_threadpool(service.job_of, body)
        answer = Answer(body, job, service.identity)
        async with AsyncExitStack() as stack:
            steps = await stack.enter_async_context(service.completing(job, body.session, request.receive))
            if body.stream:
                return _EventStream(_events(steps, answer), stack.pop_all())
            async for step in steps:
                answer.add(step)
        return JSONResponse(answer.whole())

    @router.api_route("/chat/completions", methods=["GET", "POST"])
    async def chat() -> None:
        message = f"{service.name!r} has no chat form, it goes on with texts: POST /v1/completions with a `prompt` in place of `messages`."
        raise ApiError(404, message, "no_chat")

    return router


def _session_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("", status_code=201)
    async def create(body: NewSession | None = None) -> dict[str, Any]:
        return (await service.sessions.create(body.id if body else None, service.new_state())).to_dict()

    @router.get("")
    async def every() -> dict[str, Any]:
        return {"object": "list", "data": [session.to_dict() for session in service.sessions.all()]}

    @router.get("/{id}")
    async def get(id: str) -> dict[str, Any]:
        return service.sessions.get(id).to_dict()

    @router.delete("/{id}")
    async def delete(id: str) -> dict[str, Any]:
        await service.sessions.delete(id)
        return {"id": id, "object": "session.deleted", "deleted": True}

    @router.post("/{id}/fork", status_code=201)
    async def fork(id: str, body: NewSession | None = None) -> dict[str, Any]:
        return (await service.sessions.fork(id, body.id if body else None)).to_dict()

    @router.get("/{id}/state", response_class=StreamingResponse)
    async def export(id: str) -> StreamingResponse:
        file = service.sessions.open(id)
        headers = {"Content-Length": str(file.seek(0, 2)), "Content-Disposition": f'attachment; filename="{id}.safetensors"'}
        return StreamingResponse(_parts(file), media_type="application/octet-stream", headers=headers)

    @router.put("/{id}/state", status_code=201)
    async def import_state(id: str, request: Request) -> dict[str, Any]:
        return (await service.import_state(id, request.stream())).to_dict()

    return router


async def _events(steps: AsyncIterator[Step], answer: Answer) -> AsyncIterator[str]:
    """An answer in a stream; an error after its begin is its last event."""
    try:
        async for step in steps:
            for text in answer.chunks(step):
                yield text
        for text in answer.last_chunks():
            yield text
    except ClientLeftError:
        return
    except Exception as error:
        told = as_api_error(error)
        if told.status_code == 500:
            log.exception("a stream failed")
        yield event(told.body)


class _EventStream(StreamingResponse):
    """Server-sent events, whose work ends with them, also where they never begin. The work itself sees that the client has left."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await self.stream_response(send)


def _parts(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while part := file.read(1 << 20):
            yield part
