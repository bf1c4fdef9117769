"""Videos of Wan's true architecture at small width, scored frame by frame in clips of two seconds."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline.evaluation import video_evaluation
from pipeline.evaluation.video_evaluation import VideoOptions, VideoSample, VideoWorker, average_by_clip, encode_webp

SMALL = ["height=16", "width=16", "num_frames=5", "frames_per_block=1", "max_sequence_length=16", "fps=2"]
SMALL += ["cpus_per_process=0.5"]


class RedScorer:
    def __call__(self, images, prompts, negatives):
        return {"aesthetic": [image.getpixel((0, 0))[0] / 255 for image in images]}


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    from nasa.testing.tiny_pipelines import TINY_PIPELINES

    folder = tmp_path_factory.mktemp("wan") / "causvid"
    TINY_PIPELINES["wan"]().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog runs\n\na cat sleeps\n")
    return tmp_path / "prompts.txt"


def test_a_clip_score_is_the_mean_of_its_frames():
    frames = np.zeros((5, 4, 4, 3), dtype=np.uint8)
    frames[:, :, :, 0] = np.array([0, 51, 102, 153, 255])[:, None, None]
    assert average_by_clip(frames, 2, [RedScorer()]) == {"aesthetic": pytest.approx([0.1, 0.5, 1.0])}


def test_an_encoded_video_has_all_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 32, 3), dtype=np.uint8)
    (tmp_path / "x.webp").write_bytes(encode_webp(frames, 4))
    with Image.open(tmp_path / "x.webp") as image:
        assert (image.n_frames, image.size) == (3, (32, 16))


def build_arguments(wan, prompts, folder, *overrides):
    options = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    return ["evaluate-video", "--model", str(wan), "--prompts", str(prompts), "--out", str(folder), *options]


def test_the_job_generates_each_prompt_with_and_without_the_negative(ray_cluster, wan, prompts, tmp_path, capsys):
    assert main(build_arguments(wan, prompts, tmp_path / "out")) == 0, capsys.readouterr().err
    rows = [json.loads(file.read_text()) for file in (tmp_path / "out/videos").glob("*.json")]
    assert sorted((row["prompt"], row["seed"], row["system"]) for row in rows) == [
        ("a cat sleeps", 1, "NASA 0.5"),
        ("a cat sleeps", 1, "no negative"),
        ("a dog runs", 0, "NASA 0.5"),
        ("a dog runs", 0, "no negative"),
    ]
    videos = {
        json.loads(file.read_text())["system"]: file.with_suffix(".webp").read_bytes()
        for file in (tmp_path / "out/videos").glob("*.json")
        if json.loads(file.read_text())["seed"]
    }
    assert videos["NASA 0.5"] != videos["no negative"]
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/webp") == 4


def test_an_existing_video_is_not_generated_again(wan, tmp_path, monkeypatch):
    options = VideoOptions(
        model=str(wan), height=16, width=16, num_frames=5, frames_per_block=1, max_sequence_length=16, fps=2
    )
    worker = VideoWorker(options, str(wan), str(tmp_path))
    worker.scorers = [RedScorer()]
    sample = VideoSample("NASA 0.5", "a dog", 3)
    first = worker.load_or_generate_row(sample)
    record = json.loads((tmp_path / f"videos/{first.video}.json").read_text())
    assert len(record["clips"]["aesthetic"]) == 2  # one of 4 frames and one of 1
    assert first.scores["aesthetic"] == pytest.approx(np.mean(record["clips"]["aesthetic"]))
    monkeypatch.setattr(video_evaluation, "generate_video", None)
    assert worker.load_or_generate_row(sample) == first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics=[{kind='hpsv2'}]"], "metrics: got ['hpsv2']; expected aesthetic and imaging"),
        (["metrics=[{kind='imaging', weights='/no/where'}]"], "weights: got '/no/where'; expected a file"),
        (["fps=0"], "fps: got 0; expected a number above 0"),
        (["prompts='/no/where.txt'"], "/no/where.txt: no such file"),
        (["model='/no/where'"], "model: got '/no/where'; expected a folder or hub id of a WanPipeline"),
    ],
)
def test_invalid_input_is_reported(wan, prompts, tmp_path, capsys, overrides, message):
    assert main(build_arguments(wan, prompts, tmp_path / "out", *overrides)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
