"""Where models lie: with the project, in a folder, on S3, or on the Hugging Face hub at a pinned revision."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage import Folder

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
VARIANTS = ("*.fp16.safetensors", "*non_ema*", "*/flax_*", "*openvino*")


def is_hub_id(place: str) -> bool:
    """`organisation/name`, where no folder of that name is here."""
    return bool(HUB_ID.fullmatch(place)) and not Path(place).exists()


def local_folder(place: str, field: str, revision: str = "main", wanted: Sequence[str] = WANTED) -> Path:
    """A folder on this machine; what lies elsewhere is fetched. The hub's token is read from HF_TOKEN.

    Of the hub's files those that fit `wanted`.
    """
    if not is_hub_id(place):
        folder = Folder.of(place)
        return Path(folder.path) if folder.is_local else folder.local_copy(Path(tempfile.mkdtemp()))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(place, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(VARIANTS))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{field}: {place!r} at {revision!r} cannot be had from the hub: {str(error).splitlines()[0]}; "
            "allowed: a folder, s3://, or a hub id whose terms the HF_TOKEN has accepted"
        ) from None
