import huggingface_hub
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipeline.errors import TransientError, UserError
from pipeline.model_download import download_folder


def build_http_error(status):
    response = requests.Response()
    response.status_code = status
    return HfHubHTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    ("error", "is_transient"),
    [
        (build_http_error(404), False),
        (build_http_error(401), False),
        (build_http_error(503), True),
        (LocalEntryNotFoundError("no connection"), True),
        (ValueError("not a name"), False),
    ],
)
def test_an_unavailable_hub_is_distinguished_from_a_missing_model(monkeypatch, error, is_transient):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="teacher: 'a/b' at 'main' cannot be downloaded from the hub") as caught:
        download_folder("a/b", "teacher")
    assert isinstance(caught.value, TransientError) is is_transient
