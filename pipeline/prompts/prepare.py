"""Preparation of prompts: from source files to the shards that training reads, and the negative-prompt corpus."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from datasets_prep import data_card, negative_corpus
from datasets_prep.chunk_cleaning import CleaningStats
from datasets_prep.epoch_sampler import compute_epoch_quotas
from datasets_prep.shapes import prompts as shapes
from datasets_prep.sources import read_tables
from pipeline import manifest
from pipeline.errors import UserError, get_first_line, invalid
from pipeline.manifest import DataFile
from pipeline.model_download import download_folder, is_hub_id
from pipeline.prompts import clean_corpus, file_cleaning
from pipeline.prompts.clean_corpus import SCHEMA
from pipeline.prompts.negative_sampler import NEGATIVES
from pipeline.prompts.preparation_request import build_request, count_added_files
from pipeline.prompts.prompt_dataset import PromptRequest, PromptsManifest, SourceRecord, write_data_file
from pipeline.prompts.source_files import SourceFile, find_source_files
from pipeline.recipe import BUNDLED, Prompts, Recipe, Source
from pipeline.storage import Folder

CARD = "card.html"
CLEANED = "cleaned"  # the folder of cleaned source files
Report = Callable[[str], None]


@dataclass
class PreparationOutput:
    """The data files written so far, and the statistics and first problem of each source."""

    folder: Folder
    files: dict[str, DataFile] = field(default_factory=dict)
    stats: dict[str, CleaningStats] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, table: pa.Table, source: str | None = None) -> None:
        """Write a table and record its hash."""
        self.files[name] = write_data_file(self.folder, name, table, source)


def prepare(
    recipe: Recipe, folder: Folder, address: str | None = None, report: Report = lambda line: None
) -> PromptsManifest:
    """Write `shard-SOURCE-NNNNN.parquet`, `negatives.parquet`, `card.html` and the manifest; return the manifest.

    If the folder was prepared for the same request, nothing is done. If the sources have new files, only these are
    cleaned; but once a distillation has begun the folder stays as it is, because it rejects other prompts.

    Raises:
        UserError: if the folder holds prompts of other sources or settings.
    """
    sources = {} if recipe.prompts.is_bundled else dict(find_source_files(_resolve_sources(recipe.prompts)))
    negative_files = _list_negative_files(recipe.prompts)
    request = build_request(recipe, [file for files in sources.values() for file in files], negative_files)
    if folder.exists(manifest.NAME):
        prepared = manifest.read(folder, PromptsManifest)
        added = count_added_files(folder, prepared, request)
        if not added:
            return prepared
        if _is_in_use(folder):
            report(
                f"{folder.uri}: {added} new files are not included, because a distillation has begun with these "
                "prompts. Pass another --run to include them."
            )
            return prepared
        report(f"{folder.uri}: {added} new files are cleaned, and the shards are written again.")
    output = PreparationOutput(folder)
    if recipe.prompts.is_bundled:
        _write_bundled_prompts(recipe, output)
    else:
        _clean_and_write_sources(recipe, sources, output, address)
    _check_not_empty(output)
    _write_negatives(recipe, negative_files, output)
    return _finish(recipe, output, request)


def _is_in_use(folder: Folder) -> bool:
    """Tell whether the run of this folder has begun its distillation."""
    return (folder.parent / "distilled").exists(manifest.RUN_FILE)


def _resolve_sources(prompts: Prompts) -> list[Source]:
    return [source.model_copy(update={"path": prompts.resolve(source.path)}) for source in prompts.sources]


def _list_negative_files(prompts: Prompts) -> list[SourceFile]:
    path = prompts.negatives and prompts.resolve(prompts.negatives)
    return find_source_files((Source(path=path),), "prompts.negatives")[0][1] if path else []


def _write_bundled_prompts(recipe: Recipe, output: PreparationOutput) -> None:
    """Write a sample of the Shapes toy dataset, which needs no cleaning."""
    prompts = list(shapes.sample_prompts(recipe.prompts.count, recipe.seed))
    output.stats[BUNDLED] = CleaningStats(rows=len(prompts))
    rows = recipe.prompts.rows_per_shard
    for number, first in enumerate(range(0, len(prompts), rows)):
        chunk = prompts[first : first + rows]
        table = pa.table({"index": range(first, first + len(chunk)), "prompt": chunk}, schema=SCHEMA)
        output.write(f"shard-{BUNDLED}-{number:05d}.parquet", table, source=BUNDLED)


def _clean_and_write_sources(
    recipe: Recipe, sources: dict[str, list[SourceFile]], output: PreparationOutput, address: str | None
) -> None:
    """Clean the source files, deduplicate all of them together, and write the shards of each source."""
    options = recipe.prompts
    config = file_cleaning.CleaningConfig(options.filters, _read_tokenizer(recipe), file_cleaning.ROWS_PER_CHUNK)
    files = [file for files in sources.values() for file in files]
    cleaned = file_cleaning.clean_files(files, config, output.folder / CLEANED, address)
    output.stats.update({name: CleaningStats() for name in sources})
    for file in cleaned:
        _add_stats(file, output, stop=options.on_unreadable == "stop")
    corpus = clean_corpus.CleanCorpus(cleaned)
    kept = clean_corpus.mark_unique_rows(corpus, options.near_duplicates, output.stats)
    clean_corpus.set_distributions(corpus, kept, output.stats)
    for name in sources:
        clean_corpus.write_shards(corpus, kept, name, options.rows_per_shard, output.write)


def _add_stats(file: file_cleaning.CleanedFile, output: PreparationOutput, *, stop: bool) -> None:
    """Add a file's statistics to its source; `stop` makes an unreadable row an error."""
    source, uri = file.source_file.source, file.source_file.uri
    if file.stats.first_unreadable:
        row, problem = file.stats.first_unreadable
        if stop:
            raise UserError(
                f"{uri}: got {file.stats.removed['unreadable']} unreadable rows, the first row {row}: {problem}; "
                'expected none. Repair the file, or pass prompts.on_unreadable = "skip".'
            )
        output.problems.setdefault(source, f"{uri}: row {row}: {problem}")
    output.stats[source].merge(file.stats)


def _read_tokenizer(recipe: Recipe) -> str:
    """Return the content of the tokenizer.json of the recipe's tokenizer, or of its teacher."""
    from transformers import AutoTokenizer

    from pipeline.models import find_teacher_folder

    if recipe.prompts.tokenizer:
        folder = download_folder(recipe.prompts.tokenizer, "prompts.tokenizer")
    elif is_hub_id(recipe.teacher):
        folder = download_folder(recipe.teacher, "teacher", recipe.revision, ["tokenizer/*"]) / "tokenizer"
    else:
        folder = find_teacher_folder(recipe.teacher) / "tokenizer"
    try:
        text: str = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        expected = f"a folder with a tokenizer that the `tokenizers` library reads ({get_first_line(error)})"
        raise invalid("prompts.tokenizer", str(folder), expected) from None
    return text


def _check_not_empty(output: PreparationOutput) -> None:
    for source, stats in output.stats.items():
        if not stats.kept:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in stats.removed.most_common()) or "no rows"
            first = f"; the first unreadable row is {output.problems[source]}" if source in output.problems else ""
            raise UserError(
                f"prompts.sources: {source!r}: got no usable prompt ({reasons}); expected one or more{first}."
            )


def _write_negatives(recipe: Recipe, files: Sequence[SourceFile], output: PreparationOutput) -> None:
    if recipe.prompts.is_bundled:
        table = negative_corpus.build_weighted_corpus(
            shapes.sample_negatives(recipe.prompts.negative_draws, recipe.seed)
        )
    else:
        observed = Counter(_iter_observed_negatives(files))
        table = negative_corpus.build_corpus(recipe.prompts.negative_count, recipe.seed, observed)
    output.write(NEGATIVES, table)


def _iter_observed_negatives(files: Sequence[SourceFile]) -> Iterator[str]:
    """Yield the negative prompts that people wrote: a table's column of them, or a file that contains nothing else."""
    for file in files:
        for table in read_tables(file.to_prompt_file(), file_cleaning.ROWS_PER_CHUNK):
            column = "negative" if table["negative"].null_count < table.num_rows else "text"
            yield from (text for text in table[column].drop_null().to_pylist() if text.strip())


def _finish(recipe: Recipe, output: PreparationOutput, request: PromptRequest) -> PromptsManifest:
    names = list(output.stats)
    rows = {name: sum(file.rows for file in output.files.values() if file.source == name) for name in names}
    assert all(stats.kept == rows[name] for name, stats in output.stats.items())
    epoch = compute_epoch_quotas(list(rows.values()), [source.weight for source in recipe.prompts.sources])
    quotas = dict(zip(names, epoch, strict=True))
    card_sources = {
        name: {**output.stats[name].to_dict(), "prompts": rows[name], "per_epoch": quotas[name]} for name in names
    }
    negative_prompts = output.folder.read_table(NEGATIVES)
    output.folder.write(CARD, data_card.render(recipe.name, card_sources, negative_prompts).encode())
    prepared = PromptsManifest(
        recipe=recipe,
        request=request,
        files=output.files,
        sources={name: _build_source_record(output.stats[name], rows[name], quotas[name]) for name in names},
        prompts=sum(rows.values()),
        shards=len(output.files) - 1,
        negative_prompts=output.files[NEGATIVES].rows,
        epoch=sum(epoch),
    )
    manifest.write(output.folder, prepared)
    _delete_unlisted_shards(output)
    return manifest.read(output.folder, PromptsManifest)


def _build_source_record(stats: CleaningStats, prompts: int, per_epoch: int) -> SourceRecord:
    """Return a source's record; the blocked texts are in the card alone."""
    statistics = stats.to_dict()
    del statistics["blocked"]
    rows, removed = statistics.pop("rows"), statistics.pop("removed")
    return SourceRecord(prompts=prompts, per_epoch=per_epoch, rows=rows, removed=removed, statistics=statistics)


def _delete_unlisted_shards(output: PreparationOutput) -> None:
    """Delete the shards of an earlier preparation that are not part of this one."""
    for name in output.folder.list_files():
        if name.endswith(".parquet") and name not in output.files:
            output.folder.remove(name)
