import huggingface_hub
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipeline.errors import TransientError, UserError
from pipeline.hub import download_folder


def answered(status):
    response = requests.Response()
    response.status_code = status
    return HfHubHTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (answered(404), False),
        (answered(401), False),
        (answered(503), True),
        (LocalEntryNotFoundError("no connection"), True),
        (ValueError("not a name"), False),
    ],
)
def test_a_hub_that_is_away_is_told_from_a_model_that_it_has_not(monkeypatch, error, passes):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="teacher: 'a/b' at 'main' cannot be had from the hub") as refused:
        download_folder("a/b", "teacher")
    assert isinstance(refused.value, TransientError) is passes
