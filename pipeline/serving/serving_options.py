"""The options of the server, which `jobs serve` and a RayService's `serveConfigV2` give."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.strict_model import StrictModel

TOKEN_VARIABLE = "NASA_DISTILL_SERVE_TOKEN"


class ServingOptions(StrictModel):
    """The served model, and the limits of the server.

    Attributes:
        name: the registered model.
        alias: the alias of the version to serve; the server follows it.
        tracking_uri: MLflow's URI.
        dtype: the denoiser's dtype; students are evaluated in float32.
        batch_size: most images in one pass of the denoiser.
        batch_wait_ms: wait for more requests before a batch starts, while several arrive at a time.
        min_replicas: replicas that always run.
        max_replicas: replicas under load.
        cpus: CPU cores of a replica.
        gpus: GPUs of a replica; 0 generates on the CPU.
        max_queued: most images that wait for a replica; further requests get status 429.
        max_seconds: longest time for one request; a later answer is status 503.
        max_body_bytes: largest request.
        poll_seconds: seconds between two looks at the alias.
        requires_token: whether the application refuses to start without a token.
        token_sha256: SHA-256 of the token that a request must carry; empty: none.
        allowed_hosts: values of a request's Host header; "*" is any.
    """

    name: str
    alias: str = "champion"
    tracking_uri: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_queued: Annotated[int, Field(ge=1)] = 128
    max_seconds: Annotated[float, Field(gt=0)] = 60.0
    max_body_bytes: Annotated[int, Field(ge=1024)] = 65_536
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    requires_token: bool = False
    token_sha256: str = ""
    allowed_hosts: tuple[str, ...] = ("*",)
