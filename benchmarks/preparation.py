"""Time and memory of preparing prompts, compared with pandas and datasketch.

    pip install wordfreq datasketch pandas          # for `generate` and `baseline`
    python -m benchmarks.preparation generate --rows 3300000 --data /tmp/corpus
    python -m benchmarks.preparation run --data /tmp/corpus
    python -m benchmarks.preparation baseline --data /tmp/corpus --rows 50000

The corpus is synthetic: 1.3 parts of JourneyDB's JSON lines (gzip) and 2 parts of LAION's Parquet, with English words
by frequency, lengths by `WORDS` and 100,000 prompts per file. In JourneyDB's format half of the rows have parameters, a
fifth repeats an earlier row and a twentieth changes one word of it. In LAION's a tenth is German, French or Spanish,
3 % have HTML and 3 % repeat. One row in a thousand is corrupt. Memory is the sum of the proportional set sizes (PSS) of
all processes.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

OBJECT_STORE = 2**30
FILE_ROWS = 100_000
WORDS = {"journeydb": (20, 0.6), "laion": (9, 0.5)}  # median, and sigma of the logarithm, of the length in words
SHARES = {"journeydb": 1.3, "laion": 2.0}
LANGUAGES = ("en", "de", "fr", "es")


class Vocabulary:
    """The words of a language and their frequencies."""

    def __init__(self, language: str) -> None:
        from wordfreq import top_n_list, word_frequency

        self.words = np.array([word for word in top_n_list(language, 30_000) if word.isalpha()])
        frequency = np.array([word_frequency(word, language) for word in self.words]) ** 0.8
        self.shares = frequency / frequency.sum()

    def sample_texts(self, lengths: np.ndarray, rng: np.random.Generator) -> list[list[str]]:
        words = rng.choice(self.words, int(lengths.sum()), p=self.shares)
        return [part.tolist() for part in np.split(words, np.cumsum(lengths)[:-1])]


def generate(data: Path, rows: int) -> None:
    """Write the synthetic corpus."""
    vocabularies = {language: Vocabulary(language) for language in LANGUAGES}
    for name, share in SHARES.items():
        (data / name).mkdir(parents=True, exist_ok=True)
        total = round(rows * share / sum(SHARES.values()))
        for number, first in enumerate(range(0, total, FILE_ROWS)):
            rng = np.random.default_rng((number, len(name)))
            count = min(FILE_ROWS, total - first)
            median, sigma = WORDS[name]
            lengths = np.clip(np.exp(rng.normal(np.log(median), sigma, count)).astype(int), 1, 120)
            texts = vocabularies["en"].sample_texts(lengths, rng)
            (write_journeydb if name == "journeydb" else write_laion)(data / name, number, texts, vocabularies, rng)


def write_journeydb(folder: Path, number: int, texts: list[list[str]], _: Any, rng: np.random.Generator) -> None:
    draws = rng.random((len(texts), 3))
    with gzip.open(folder / f"train_anno_{number:03d}.jsonl.gz", "wt", compresslevel=1) as file:
        for i, words in enumerate(texts):
            if i > 100 and draws[i, 0] < 0.25:
                words = list(texts[int(draws[i, 1] * i)])
                if draws[i, 0] < 0.05:
                    words[int(draws[i, 2] * len(words))] = "changed"
            text = ", ".join([" ".join(words[:6]), *(" ".join(words[j : j + 4]) for j in range(6, len(words), 4))])
            if draws[i, 2] < 0.5:
                text = f"https://s.mj.run/{i} {text}::2 --ar 3:2 --v 5 --q 2"
            file.write(
                "broken\n" if draws[i, 2] > 0.999 else json.dumps({"img_path": f"{i}.jpg", "prompt": text}) + "\n"
            )


def write_laion(folder: Path, number: int, texts: list[list[str]], vocabularies: Any, rng: np.random.Generator) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draws = rng.random((len(texts), 3))
    captions: list[str | None] = []
    foreign = {
        language: iter(vocabularies[language].sample_texts(np.full(len(texts), 9), rng)) for language in LANGUAGES[1:]
    }
    for i, words in enumerate(texts):
        text = " ".join(words)
        if draws[i, 0] < 0.1:
            text = " ".join(next(foreign[LANGUAGES[1 + i % 3]]))
        elif draws[i, 0] < 0.13:
            text = f"<b>{text}</b> &amp; more"
        elif i > 100 and draws[i, 0] < 0.16:
            text = captions[int(draws[i, 1] * i)] or text
        captions.append(None if draws[i, 2] > 0.999 else text)
    columns = {
        "URL": [f"https://example.org/{i}" for i in range(len(texts))],
        "TEXT": captions,
        "punsafe": rng.beta(1, 9, len(texts)).astype(np.float32),
        "pwatermark": rng.beta(1, 3, len(texts)).astype(np.float32),
        "AESTHETIC_SCORE": rng.normal(5, 0.7, len(texts)).astype(np.float32),
    }
    pq.write_table(pa.table(columns), folder / f"part-{number:05d}.parquet")


def load_recipe(data: Path) -> Any:
    from pipeline import recipe

    sources = f"[{{path='{data}/journeydb', weight=1.3}}, {{path='{data}/laion', weight=2.0}}]"
    return recipe.parse("", [f"prompts.sources={sources}", "prompts.filters.language='en'"])


def run(data: Path, keep: str) -> None:
    """Measure a preparation, a second one with nothing to do, and one with an additional file."""
    os.environ["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(OBJECT_STORE)
    from pipeline.prompts.prepare import prepare
    from pipeline.storage import Folder

    out = Path(keep or tempfile.mkdtemp())
    recipe, folder = load_recipe(data), Folder.from_uri(out / "prompts")
    with PeakMemory() as peak:
        prepared, seconds = time_call(lambda: prepare(recipe, folder))
    rows = sum(source.rows for source in prepared.sources.values())
    print(f"{rows:,} rows to {prepared.prompts:,} prompts in {seconds:.0f} s: {rows / seconds:,.0f} rows/s")
    print(f"peak memory, all processes: {peak[0] / 2**30:.2f} GiB")
    for name, source in prepared.sources.items():
        print(f"  {name}: {source.removed}")
    size = sum(file.stat().st_size for file in (out / "prompts").glob("shard-*"))
    cleaned = sum(file.stat().st_size for file in (out / "prompts" / "cleaned").rglob("*.parquet"))
    print(f"shards: {size / prepared.prompts:.0f} bytes a prompt; cleaned chunks: {cleaned / rows:.0f} bytes a row")
    print(f"a second time: {time_call(lambda: prepare(recipe, folder))[1]:.1f} s")
    more = data / "laion" / "part-more.parquet"
    shutil.copy(sorted((data / "laion").glob("part-0*"))[-1], more)
    try:
        print(f"with one more file: {time_call(lambda: prepare(recipe, folder))[1]:.0f} s")
    finally:
        more.unlink()
    if not keep:
        shutil.rmtree(out)


def time_call(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its seconds."""
    started = time.perf_counter()
    return call(), time.perf_counter() - started


class PeakMemory:
    """Context that tracks the peak of the summed proportional set sizes of this process and its children."""

    def __enter__(self) -> list[int]:
        self.peak, self.done = [0], threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self.peak

    def _watch(self) -> None:
        while not self.done.wait(1.0):
            self.peak[0] = max(self.peak[0], sum(map(_read_pss, _process_ids())))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def _process_ids() -> list[int]:
    import psutil

    process = psutil.Process()
    return [process.pid, *(child.pid for child in process.children(recursive=True))]


def _read_pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def run_baseline(data: Path, rows: int) -> None:
    """Measure the same steps, written with pandas and datasketch, on the first rows."""
    import pandas as pd
    from datasketch import MinHash, MinHashLSH

    from datasets_prep import dedup, filters
    from datasets_prep.cleaning import clean

    frames = [pd.read_json(file, lines=True, nrows=rows // 3) for file in _readable_rows(data, rows // 3)]
    laion_rows = pd.read_parquet(sorted((data / "laion").glob("part-0*"))[0]).head(rows - rows // 3)
    started = time.perf_counter()
    frame = pd.concat([frames[0]["prompt"], laion_rows["TEXT"]], ignore_index=True).dropna().to_frame("prompt")
    frame["prompt"] = frame["prompt"].apply(clean)
    detect = filters._load_language_detector()
    frame = frame[frame["prompt"].apply(lambda text: bool(text) and detect(text)[0]["lang"] == "en")]
    frame["normal"] = frame["prompt"].apply(dedup.normalise_text)
    frame = frame.drop_duplicates("normal")
    lsh, unique = MinHashLSH(threshold=0.8, num_perm=120), 0
    for number, normal in enumerate(frame["normal"]):
        signature = MinHash(num_perm=120)
        for shingle in dedup.extract_shingles(normal):
            signature.update(shingle.encode())
        if not lsh.query(signature):
            lsh.insert(str(number), signature)
            unique += 1
    seconds = time.perf_counter() - started
    print(
        f"pandas and datasketch: {rows:,} rows to {unique:,} prompts in {seconds:.0f} s: {rows / seconds:,.0f} rows/s"
    )


def _readable_rows(data: Path, rows: int) -> Iterator[str]:
    """Yield a file of the first rows that pandas can read."""
    with gzip.open(sorted((data / "journeydb").glob("*.gz"))[0], "rt") as source:
        lines = [line for line, _ in zip(source, range(rows), strict=False) if line.startswith("{")]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(lines)
        file.flush()
        yield file.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["generate", "run", "baseline"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3_300_000)
    parser.add_argument("--keep", default="", metavar="FOLDER", help="folder to keep the prepared prompts in")
    arguments = parser.parse_args()
    random.seed(0)
    if arguments.action == "generate":
        generate(arguments.data, arguments.rows)
    elif arguments.action == "run":
        run(arguments.data, arguments.keep)
    else:
        run_baseline(arguments.data, arguments.rows)


if __name__ == "__main__":
    main()
