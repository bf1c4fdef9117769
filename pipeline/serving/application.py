"""The Ray Serve applications: replicas of a student, alone or behind web servers of Ray Serve."""

import asyncio
import os
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from pipeline import apply_environment, logging_setup
from pipeline.errors import UserError
from pipeline.hashing import hash_bytes
from pipeline.serving.metrics import RequestMetrics
from pipeline.serving.serving_options import TOKEN_VARIABLE, ServingOptions
from pipeline.serving.student_replica import ImageResult, ImageTask, ServedModel, StudentReplica
from pipeline.serving.web_app import OverloadedError, UnavailableError, build_web_app

MAX_TRIES = 4  # of one image, on replicas that die
LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)


class ReplicaHandle:
    """The replicas behind a handle. An image is made again if its replica dies, since it depends on the task alone."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._described: ServedModel | None = None

    async def generate(self, task: ImageTask) -> ImageResult:
        """Return one image."""
        for tried in range(1, MAX_TRIES + 1):
            try:
                result: ImageResult = await self._handle.generate.remote(task)
                return result
            except BackPressureError as error:
                raise OverloadedError from error
            except (RayActorError, DeploymentUnavailableError) as error:
                if tried == MAX_TRIES:
                    raise UnavailableError(type(error).__name__) from error
                await asyncio.sleep(0.1 * tried)
        raise AssertionError

    async def describe(self) -> ServedModel:
        """Return what one of the replicas serves; while their queue is full, what one of them served last."""
        try:
            self._described = await self._handle.describe.remote()
        except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
            if not isinstance(error, BackPressureError) or self._described is None:
                raise UnavailableError(type(error).__name__) from error
        assert self._described is not None
        return self._described


@serve.ingress()
class WebServer:
    """Answers HTTP requests by the web application, behind Ray Serve's proxies."""

    def __init__(self, options: ServingOptions, replicas: DeploymentHandle[Any]) -> None:
        apply_environment()
        logging_setup.configure()
        self._options, self._replicas = options, ReplicaHandle(replicas)

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, as Ray Serve asks for it when the replica starts."""
        return build_web_app(self._options, self._replicas, RequestMetrics().observe)


def build(options: ServingOptions) -> serve.Application:
    """Return web servers before replicas; a RayService names this function as its `import_path`.

    Without a token in the options, the one in `TOKEN_VARIABLE` counts.

    Raises:
        UserError: There is no token, and the options require one.
    """
    options = _complete_token(options)
    web = _deploy(
        WebServer,
        name="web",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=options.max_seconds,
    )
    application: serve.Application = web.bind(options, build_replicas(options))
    return application


def build_replicas(options: ServingOptions) -> serve.Application:
    """Return the replicas of a student, which a handle reaches."""
    student = _deploy(
        StudentReplica,
        name="student",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": max(options.min_replicas, options.max_replicas),
            "target_ongoing_requests": options.batch_size,
        },
        max_ongoing_requests=2 * options.batch_size,  # one batch is generated while the next one gathers
        max_queued_requests=options.max_queued,
        health_check_period_s=5,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=options.max_seconds,
    )
    application: serve.Application = student.bind(options)
    return application


def _complete_token(options: ServingOptions) -> ServingOptions:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if options.token_sha256 or not token:
        if options.requires_token and not options.token_sha256:
            raise UserError(f"{TOKEN_VARIABLE}: got nothing; expected the token of requests.")
        return options
    return options.model_copy(update={"token_sha256": hash_bytes(token.encode())})


def _deploy(cls: type, **options: Any) -> Any:
    return serve.deployment(graceful_shutdown_wait_loop_s=0.2, logging_config=LOGGING, **options)(cls)
