"""A UserError of a Ray task or actor reaches the driver as itself."""

import pytest

from pipeline.errors import StorageError, UserError
from pipeline.prompts.text_encoding import EncoderConfig, TextEncoderActor
from pipeline.remote_errors import iter_batches, iter_rows


class FailAfterFirstRow:
    """A batch function that raises the given error after the first row."""

    def __init__(self, error=None):
        self.error = error

    def __call__(self, batch):
        if batch["number"][0] > 0:
            raise self.error
        return batch


@pytest.mark.parametrize(
    ("error", "actor", "read"),
    [
        (UserError("count: 0"), False, iter_rows),
        (StorageError("s3://b: 503\nlater"), True, lambda dataset: iter_batches(dataset, 1)),
        (ZeroDivisionError(), False, iter_rows),
    ],
    ids=["task", "actor", "another error"],
)
def test_a_user_error_of_a_remote_task_is_raised_unchanged(ray_cluster, capfd, error, actor, read):
    numbers = ray_cluster.data.range(2, override_num_blocks=2).rename_columns({"id": "number"})
    actor_options = {"fn_constructor_args": (error,), "concurrency": 1} if actor else {}
    mapped = numbers.map_batches(
        FailAfterFirstRow if actor else FailAfterFirstRow(error), batch_size=1, num_cpus=0.25, **actor_options
    )
    with pytest.raises(type(error)) as caught:
        list(read(mapped))
    if isinstance(error, UserError):
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)
    assert "please open an issue" not in capfd.readouterr().err


def test_a_file_missing_on_an_encoder_is_reported(ray_cluster, tmp_path):
    config = EncoderConfig(str(tmp_path / "teacher"), "main", "", str(tmp_path), False, False, 4, 0)
    prompts = ray_cluster.data.from_items([{"prompt": "a cat", "position": 0}])
    encoded = prompts.map_batches(
        TextEncoderActor, fn_constructor_args=(config,), batch_size=1, num_cpus=0.25, concurrency=1
    )
    with pytest.raises(UserError, match=f"^{tmp_path}/negatives.parquet: no such file$"):
        list(iter_rows(encoded))
