"""Preparation of prompts: sources to the shards that training reads, and the negative-prompt corpus."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from datasets_prep import card, negatives
from datasets_prep.chunk import CleaningStats
from datasets_prep.epoch_sampler import epoch_quotas
from datasets_prep.shapes import prompts as world
from datasets_prep.sources import read
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.hub import is_hub_id, local_folder
from pipeline.manifest import DataFile
from pipeline.prompts import assemble, clean, input_files
from pipeline.prompts.assemble import SCHEMA
from pipeline.prompts.input_files import InputFile
from pipeline.prompts.prompt_dataset import PromptRequest, PromptsManifest, SourceRecord, write_data_file
from pipeline.prompts.prompt_request import build_request, count_new_files
from pipeline.recipe import BUNDLED, Prompts, Recipe, Source
from pipeline.storage import Folder

NEGATIVES, CARD = "negatives.parquet", "card.html"
CLEANED = "cleaned"  # the folder of what each input file gave


@dataclass
class Preparation:
    """The files written so far, and the statistics of each source."""

    folder: Folder
    files: dict[str, DataFile] = field(default_factory=dict)
    accounts: dict[str, CleaningStats] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # of a source, the first in it

    def write(self, name: str, table: pa.Table, source: str | None = None) -> None:
        """Write a table and record its hash."""
        self.files[name] = write_data_file(self.folder, name, table, source)


def prepare(
    recipe: Recipe, folder: Folder, address: str | None = None, say: Callable[[str], None] = lambda text: None
) -> PromptsManifest:
    """Write `shard-SOURCE-NNNNN.parquet`, `negatives.parquet`, `card.html` and the manifest; returns the manifest.

    A second call with the same request returns the manifest. Additional files are cleaned and added, unless a
    distillation was begun on the folder, which would reject any other prompts.

    Raises:
        UserError: where the folder holds prompts of other sources or settings.
    """
    found = [] if recipe.prompts.is_bundled else input_files.find_inputs(_resolved_sources(recipe.prompts))
    observed = _negative_files(recipe.prompts)
    request = build_request(recipe, [each for _, files in found for each in files], observed)
    if folder.exists(manifest.NAME):
        prepared = manifest.read(folder, PromptsManifest)
        more = count_new_files(folder, prepared, request)
        if not more:
            return prepared
        if _is_in_use(folder):
            say(
                f"{folder.uri}: {more} files more than it was prepared from are not in it, as a distillation was begun "
                "on it. Pass another --run to take them."
            )
            return prepared
        say(f"{folder.uri}: {more} files more than it was prepared from: they are cleaned, and its shards written anew")
    made = Preparation(folder)
    if recipe.prompts.is_bundled:
        _write_bundled(recipe, made)
    else:
        _write_sources(recipe, found, made, address)
    _check_not_empty(made)
    _write_negatives(recipe, observed, made)
    return _write_manifest(recipe, made, request)


def _is_in_use(folder: Folder) -> bool:
    """Whether the run that this folder belongs to has begun its distillation."""
    return (folder.parent / "distilled").exists(manifest.RUN_FILE)


def _resolved_sources(prompts: Prompts) -> list[Source]:
    return [source.model_copy(update={"path": prompts.resolve(source.path)}) for source in prompts.sources]


def _negative_files(prompts: Prompts) -> list[InputFile]:
    path = prompts.negatives and prompts.resolve(prompts.negatives)
    return input_files.find_inputs((Source(path=path),), "prompts.negatives")[0][1] if path else []


def _write_bundled(recipe: Recipe, made: Preparation) -> None:
    """Write a sample of the Shapes toy dataset, which needs no cleaning."""
    prompts = list(world.sample_prompts(recipe.prompts.count, recipe.seed))
    made.accounts[BUNDLED] = CleaningStats(rows=len(prompts))
    rows = recipe.prompts.rows_per_shard
    for number, first in enumerate(range(0, len(prompts), rows)):
        chunk = prompts[first : first + rows]
        table = pa.table({"index": range(first, first + len(chunk)), "prompt": chunk}, schema=SCHEMA)
        made.write(f"shard-{BUNDLED}-{number:05d}.parquet", table, source=BUNDLED)


def _write_sources(
    recipe: Recipe, found: list[tuple[str, list[InputFile]]], made: Preparation, address: str | None
) -> None:
    options = recipe.prompts
    config = clean.CleaningConfig(options.filters, _tokenizer(recipe), clean.ROWS_PER_CHUNK)
    cleaned = clean.clean([each for _, files in found for each in files], config, made.folder / CLEANED, address)
    made.accounts.update({name: CleaningStats() for name, _ in found})
    for file in cleaned:
        if problem := _first_problem(file):
            if options.on_unreadable == "stop":
                raise UserError(
                    f"{file.input.uri}: {file.account.removed['unreadable']} unreadable, such as {problem}; "
                    'allowed: none, or prompts.on_unreadable = "skip"'
                )
            made.problems.setdefault(file.input.source, f"{file.input.uri}: {problem}")
        made.accounts[file.input.source].add(file.account)
    corpus = assemble.Corpus(cleaned)
    kept = assemble.deduplicate(corpus, options.near_duplicates, made.accounts)
    assemble.record_distributions(corpus, kept, made.accounts)
    for name, _ in found:
        assemble.write_shards(corpus, kept, name, options.rows_per_shard, made.write)


def _first_problem(file: clean.CleanedFile) -> str:
    """Return the first unreadable row's number and problem, or an empty string."""
    first = file.account.first_unreadable
    return f"row {first[0]}: {first[1]}" if first else ""


def _tokenizer(recipe: Recipe) -> str:
    """Return the tokenizer.json of the recipe's tokenizer, or of its teacher."""
    from transformers import AutoTokenizer

    from pipeline.models import teacher_folder

    if recipe.prompts.tokenizer:
        folder = local_folder(recipe.prompts.tokenizer, "prompts.tokenizer")
    elif is_hub_id(recipe.teacher):
        folder = local_folder(recipe.teacher, "teacher", recipe.revision, ["tokenizer/*"]) / "tokenizer"
    else:
        folder = teacher_folder(recipe.teacher) / "tokenizer"
    try:
        text: str = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"prompts.tokenizer: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}; "
            "allowed: a folder with a tokenizer that the `tokenizers` library reads"
        ) from None
    return text


def _check_not_empty(made: Preparation) -> None:
    for source, account in made.accounts.items():
        if not account.kept:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in account.removed.most_common()) or "no rows"
            first = f"; the first unreadable is {made.problems[source]}" if source in made.problems else ""
            raise UserError(f"prompts.sources: {source!r} has no prompt left ({reasons}); allowed: one or more{first}")


def _write_negatives(recipe: Recipe, observed: list[InputFile], made: Preparation) -> None:
    if recipe.prompts.is_bundled:
        table = negatives.corpus(world.sample_negatives(recipe.prompts.negative_draws, recipe.seed))
    else:
        table = negatives.build(recipe.prompts.negative_count, recipe.seed, Counter(_read_negatives(observed)))
    made.write(NEGATIVES, table)


def _read_negatives(files: list[InputFile]) -> Iterator[str]:
    """Return the negative prompts that people wrote: a table's column of them, or a file of nothing else."""
    for each in files:
        for table in read(each.file(), clean.ROWS_PER_CHUNK):
            own = "negative" if table["negative"].null_count < table.num_rows else "text"
            yield from (text for text in table[own].drop_null().to_pylist() if text.strip())


def _write_manifest(recipe: Recipe, made: Preparation, request: PromptRequest) -> PromptsManifest:
    names = list(made.accounts)
    rows = {name: sum(file.rows for file in made.files.values() if file.source == name) for name in names}
    assert all(account.kept == rows[name] for name, account in made.accounts.items())
    epoch = epoch_quotas(list(rows.values()), [source.weight for source in recipe.prompts.sources])
    quotas = dict(zip(names, epoch, strict=True))
    pages = {
        name: {**made.accounts[name].to_dict(), "prompts": rows[name], "per_epoch": quotas[name]} for name in names
    }
    negative_prompts = made.folder.read_table(NEGATIVES)
    made.folder.write(CARD, card.page(recipe.name, pages, negative_prompts).encode())
    prepared = PromptsManifest(
        recipe=recipe,
        request=request,
        files=made.files,
        sources={name: _source_record(made.accounts[name], rows[name], quotas[name]) for name in names},
        prompts=sum(rows.values()),
        shards=len(made.files) - 1,
        negative_prompts=made.files[NEGATIVES].rows,
        epoch=sum(epoch),
    )
    manifest.write(made.folder, prepared)
    _remove_unlisted(made)
    return manifest.read(made.folder, PromptsManifest)


def _source_record(account: CleaningStats, prompts: int, per_epoch: int) -> SourceRecord:
    """Return a source's record; the blocked texts are in the card alone."""
    statistics = account.to_dict()
    del statistics["blocked"]
    rows, removed = statistics.pop("rows"), statistics.pop("removed")
    return SourceRecord(prompts=prompts, per_epoch=per_epoch, rows=rows, removed=removed, statistics=statistics)


def _remove_unlisted(made: Preparation) -> None:
    """Delete the shards of an earlier preparation that are not part of this one."""
    for name in made.folder.list_files():
        if name.endswith(".parquet") and name not in made.files:
            made.folder.remove(name)
