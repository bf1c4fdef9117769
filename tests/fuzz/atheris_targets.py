"""Coverage-guided fuzzing: `python tests/fuzz/atheris_targets.py TARGET -max_total_time=60`; 0 if no input fails."""

import io
import json
import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["pipeline", "datasets_prep"]):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.fs import LocalFileSystem

    from datasets_prep.sources import PromptFile, read_tables
    from pipeline import manifest, recipe
    from pipeline.errors import UserError
    from pipeline.manifest import DataFile
    from pipeline.prompts import prompt_dataset
    from pipeline.storage import Folder
    from pipeline.training import checkpoint

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def fuzz_recipe(content: bytes) -> None:
    recipe.parse(content.decode("utf-8", "ignore"))


def fuzz_manifest(content: bytes) -> None:
    (FOLDER / manifest.NAME).write_bytes(content)
    prompt_dataset.load_manifest(Folder.from_uri(FOLDER))


def fuzz_lines(content: bytes) -> None:
    for ending in ("jsonl", "csv", "txt", "gz", "tar"):
        _read_rows(FOLDER / f"prompts.{ending}", content)


def fuzz_parquet(content: bytes) -> None:
    _read_rows(FOLDER / "prompts.parquet", content)


def fuzz_checkpoint(content: bytes) -> None:
    name, _, rest = content.partition(b"\0")
    (FOLDER / "state.json").write_bytes(rest if name == b"s" else b'{"workers": 1}')
    (FOLDER / "files-0.json").write_bytes(json.dumps({"x": [1, 2]}).encode() if name == b"s" else rest)
    assert checkpoint.find_corruption(FOLDER)


def _read_rows(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for table in read_tables(PromptFile(LocalFileSystem(), str(file)), 100):
        table.to_pylist()
    assert file.read_bytes() == content, "the file was changed"


TARGETS = {
    "recipe": fuzz_recipe,
    "manifest": fuzz_manifest,
    "lines": fuzz_lines,
    "parquet": fuzz_parquet,
    "checkpoint": fuzz_checkpoint,
}


def build_seeds() -> dict[str, bytes]:
    """Return one valid input for each target, from which fuzzing starts."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a cat", "a dog"]}), sink)
    prompts_manifest = prompt_dataset.PromptsManifest(
        recipe=recipe.load("shapes"),
        request=prompt_dataset.PromptRequest(cleaning=0, settings={}, files=(), negative_files=()),
        files={"x": DataFile(rows=1, bytes=1, sha256="0", source="x")},
        sources={"x": prompt_dataset.SourceRecord(prompts=1, per_epoch=1, rows=1, removed={}, statistics={})},
        prompts=1,
        shards=1,
        negative_prompts=0,
        epoch=1,
    )
    return {
        "recipe": (recipe.RECIPES / "sd21.toml").read_bytes(),
        "manifest": json.dumps(prompts_manifest.to_dict()).encode(),
        "lines": b'{"prompt": "a cat", "aesthetic": 5.5}\n{"prompt": null}\n',
        "parquet": sink.getvalue(),
        "checkpoint": b's\0{"workers": 1, "step": 4}',
    }


def main() -> None:
    name = sys.argv.pop(1)
    target, corpus = TARGETS[name], FOLDER / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(build_seeds()[name])

    def run_target(content: bytes) -> None:
        try:
            target(content)
        except UserError as error:
            assert "\n" not in str(error), str(error)  # noqa: PT017

    os.chdir(FOLDER)
    atheris.Setup([*sys.argv, str(corpus)], run_target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
