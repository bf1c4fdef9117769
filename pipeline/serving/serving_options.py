"""The options of the server, which `jobs serve` and a RayService's `serveConfigV2` give."""

from typing import Literal

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
        token_sha256: SHA-256 of the token that a request must carry; empty: none.
        allowed_hosts: values of a request's Host header; "*" is any.
    """

    name: str
    alias: str = "champion"
    tracking_uri: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = Field(16, ge=1, le=256)
    batch_wait_ms: float = Field(5.0, ge=0, le=1000)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    max_queued: int = Field(128, ge=1)
    max_seconds: float = Field(60.0, gt=0)
    max_body_bytes: int = Field(65_536, ge=1024)
    poll_seconds: float = Field(2.0, gt=0)
    token_sha256: str = ""
    allowed_hosts: tuple[str, ...] = ("*",)
