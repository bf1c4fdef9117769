"""The web application: OpenAI's image API with a negative prompt, the list of models, health, and a page."""

import asyncio
import base64
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware

from nasa.version import __version__
from pipeline.errors import invalid
from pipeline.generation.image_request import METHODS
from pipeline.hashing import hash_bytes
from pipeline.serving.image_api import (
    ErrorBody,
    GeneratedImageBody,
    ImageRequestError,
    ImagesAnswer,
    ImagesRequest,
    check_size,
    explain_missing_effect,
    parse_images_request,
)
from pipeline.serving.middleware import BodyLimit, ObserveRequest, RequestRecorder, Traffic
from pipeline.serving.serving_options import ServingOptions
from pipeline.serving.student_replica import ImageResult, ImageTask, ServedModel

RETRY_AFTER_SECONDS = 1
PNG = "image/png"
IMAGES_PATH = "/v1/images/generations"
CONTENT_POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class OverloadedError(Exception):
    """The queue is full."""


class UnavailableError(Exception):
    """No replica can answer now."""


class Replicas(Protocol):
    """The replicas that generate images, as the web application sees them.

    Both methods raise an UnavailableError if none answers; `generate` raises an OverloadedError if the queue is full.
    """

    async def generate(self, task: ImageTask) -> ImageResult:
        """Return one image."""

    async def describe(self) -> ServedModel:
        """Return what is served."""


def build_web_app(
    options: ServingOptions,
    replicas: Replicas,
    observe: ObserveRequest = lambda status, seconds: None,
    traffic: Traffic | None = None,
) -> FastAPI:
    """Return the application; `observe` is called with the status and the seconds of each request for images."""
    app = FastAPIOffline(title="nasa-distill", version=__version__, description=__doc__)
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes, max_seconds=options.max_seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(options.allowed_hosts))
    app.add_middleware(RequestRecorder, path=IMAGES_PATH, traffic=traffic or Traffic(), observe=observe)
    _handle_errors(app)
    protected = APIRouter(prefix="/v1", dependencies=[Depends(_build_token_check(options.token_sha256))])
    _add_image_route(protected, options, replicas)
    _add_model_routes(protected, options, replicas)
    app.include_router(protected)
    _add_public_routes(app, replicas)
    return app


def _add_image_route(router: APIRouter, options: ServingOptions, replicas: Replicas) -> None:
    body = {"content": {"application/json": {"schema": ImagesRequest.model_json_schema()}}}

    @router.post(
        "/images/generations",
        response_model=ImagesAnswer,
        openapi_extra={"requestBody": body},
        responses={200: {"content": {PNG: {}}}, **_ERROR_RESPONSES},
    )
    async def create_images(request: Request) -> Response:
        """Generate images. With `Accept: image/png` and one image, the answer is the PNG itself."""
        asked = parse_images_request(await _read_json(request))
        as_png = PNG in request.headers.get("accept", "")
        if as_png and asked.n != 1:
            raise ImageRequestError(str(invalid("n", asked.n, f"1 with Accept: {PNG}")))
        _check_model(asked.model, options)
        if asked.size != "auto":
            check_size(asked.size, (await asyncio.wait_for(replicas.describe(), options.max_seconds)).size)
        results = await _generate(replicas, asked, options.max_seconds)
        return _build_png_response(asked, results[0]) if as_png else _build_json_response(asked, results, options.name)


def _add_model_routes(router: APIRouter, options: ServingOptions, replicas: Replicas) -> None:
    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """List the served model, its version in service, its image size and its default scale."""
        return {"object": "list", "data": [_describe_model(await replicas.describe(), options)]}

    @router.get("/models/{model}/card", response_class=PlainTextResponse)
    async def get_model_card(model: str) -> str:
        """Return the model card of the version in service, in Markdown."""
        _check_model(model, options)
        return (await replicas.describe()).model_card


def _add_public_routes(app: FastAPI, replicas: Replicas) -> None:
    @app.get("/healthz")
    async def get_health() -> dict[str, Any]:
        """Return the version in service, and "degraded" with the reason if a newer one cannot be served."""
        served = await replicas.describe()
        return {"status": "degraded" if served.alarm else "ok", "version": served.version, "alarm": served.alarm}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def get_page() -> Response:
        page = files("pipeline.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-cache"})


_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": dict[str, ErrorBody], "description": description}
    for status, description in {
        401: "the token is missing or wrong",
        404: "another model",
        408: "the body did not arrive in time",
        413: "the body is too large",
        422: "a field is not accepted",
        429: "the queue is full",
        503: "no replica could answer in time",
    }.items()
}


def _build_token_check(token_sha256: str) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:  # a coroutine, as FastAPI runs others in a thread
        if not token_sha256:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = hash_bytes(token.strip().encode())
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, token_sha256):
            raise _AnsweredError(
                401, "Authorization: expected `Bearer TOKEN` with the server's token.", "invalid_api_key"
            )

    return check


class _AnsweredError(Exception):
    """An error that is answered with a status of its own."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def _handle_errors(app: FastAPI) -> None:
    """Answer every error with OpenAI's body; an answer that may succeed later says when to try again."""

    @app.exception_handler(_AnsweredError)
    async def answer(_: Request, error: _AnsweredError) -> Response:
        return _build_error_response(error.status, str(error), error.code, error.param)

    @app.exception_handler(ImageRequestError)
    async def reject(_: Request, error: ImageRequestError) -> Response:
        return _build_error_response(422, str(error), "invalid_value", error.field)

    @app.exception_handler(OverloadedError)
    async def push_back(_: Request, error: OverloadedError) -> Response:
        return _build_error_response(429, "The queue is full.", "rate_limit_exceeded")

    @app.exception_handler(UnavailableError)
    async def excuse(_: Request, error: UnavailableError) -> Response:
        return _build_error_response(503, f"No replica can answer now: {error}", "unavailable")

    @app.exception_handler(Exception)
    async def apologise(_: Request, error: Exception) -> Response:
        return _build_error_response(
            500, "The images could not be made; the server's log has the reason.", "internal_error"
        )

    @app.exception_handler(TimeoutError)
    async def give_up(_: Request, error: TimeoutError) -> Response:
        return _build_error_response(503, "timeout: the images were not ready in time.", "timeout", "timeout")


def _build_error_response(status: int, message: str, code: str, param: str | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    body = ErrorBody(message=message, type=kind, param=param, code=code).to_answer()
    return Response(json.dumps(body), status, headers, "application/json")  # ASCII: a value may have lone surrogates


async def _read_json(request: Request) -> Any:
    """Return the body's JSON; its type must be JSON, which keeps forms of other sites out."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ImageRequestError(str(invalid("Content-Type", kind, "application/json")))
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ImageRequestError("body: got something else; expected a JSON object.") from None


def _check_model(model: str | None, options: ServingOptions) -> None:
    if model not in (None, options.name):
        raise _AnsweredError(
            404, str(invalid("model", model, f"{options.name}, which is served")), "model_not_found", "model"
        )


async def _generate(replicas: Replicas, asked: ImagesRequest, max_seconds: float) -> list[ImageResult]:
    """Return all images of a request.

    Raises:
        TimeoutError: They are not ready in time.
    """
    seconds = min(max_seconds, asked.timeout or math.inf)
    deadline = time.time() + seconds
    tasks = [replicas.generate(ImageTask(request, deadline)) for request in asked.build_image_requests()]
    return list(await asyncio.wait_for(asyncio.gather(*tasks), seconds))


def _list_warnings(asked: ImagesRequest, results: list[ImageResult]) -> list[str]:
    warning = explain_missing_effect(asked, results[0].scale)
    return [warning] if warning else []


def _build_json_response(asked: ImagesRequest, results: list[ImageResult], model: str) -> Response:
    answer = ImagesAnswer(
        created=int(time.time()),
        model=model,
        data=[
            GeneratedImageBody(
                b64_json=base64.b64encode(result.png).decode(),
                seed=result.seed,
                version=result.version,
                scale=result.scale,
            )
            for result in results
        ],
        warnings=_list_warnings(asked, results),
    )
    return JSONResponse(answer.model_dump())


def _build_png_response(asked: ImagesRequest, result: ImageResult) -> Response:
    headers = {"X-Model-Version": result.version, "X-Seed": str(result.seed), "X-Scale": f"{result.scale:g}"}
    if warnings := _list_warnings(asked, [result]):
        headers["X-Warning"] = " ".join(warnings)
    return Response(result.png, media_type=PNG, headers=headers)


def _describe_model(served: ServedModel, options: ServingOptions) -> dict[str, Any]:
    return {
        "id": options.name,
        "object": "model",
        "owned_by": "nasa-distill",
        "version": served.version,
        "alias": options.alias,
        "size": "{}x{}".format(*served.size),
        "scale": served.scale,
        "methods": METHODS,
        "alarm": served.alarm,
    }
