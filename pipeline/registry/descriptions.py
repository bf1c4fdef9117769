"""Descriptions of versions and models on MLflow's pages, in Markdown, with the decision first."""

import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from pipeline import logged_models
from pipeline.registry.candidate import SHORT, Candidate
from pipeline.registry.mlflow_registry import (
    CHALLENGER,
    CHAMPION,
    METRIC,
    STATE,
    STEP,
    WHY,
    get_aliases,
    list_versions,
    set_tags,
)
from pipeline.registry.promotion_decision import Decision
from pipeline.registry.student_scores import Scores
from pipeline.registry.version_artifacts import DECISION

BREAK = "\n\n"
SHOWN = 20  # versions on the model's page; `python -m jobs models` lists all
USE = (
    'Load the champion: `mlflow.pyfunc.load_model("models:/{name}@champion")`. '
    "Roll back to the previous champion: `python -m jobs models rollback --name {name}`."
)


def get_today() -> str:
    """Return today's date, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def score_of(tags: Mapping[str, str]) -> str:
    """Return the score in a version's tags, such as 'clean_and_right 0.750 (0.712-0.781)'."""
    metric = tags.get(METRIC, "")
    return f"{metric} {tags[metric]}" if tags.get(metric) else "no score"


def render_version_description(
    client: MlflowClient, candidate: Candidate, scores: Scores, decision: Decision | None
) -> str:
    """Return a version's description below its first paragraph: scores, the comparison, links and images."""
    experiment = client.get_run(candidate.mlflow_run).info.experiment_id
    run = f"#/experiments/{experiment}/runs/{candidate.mlflow_run}"
    files = f"{run}/artifacts/{candidate.artifact_path}"
    logged_model = logged_models.find(client, candidate.trained)
    pages = {"training run": run}
    if logged_model is not None:
        pages["logged model"] = f"#/experiments/{experiment}/models/{logged_model.model_id}"
    sheet = quote(f"{candidate.artifact_path}/evaluation/contact_sheet.png")
    links = pages | {
        "images and scores": f"{files}/evaluation/report.html",
        "model card": f"{files}/README.md",
        "recipe": f"{files}/recipe.toml",
        "decision": f"{files}/{DECISION}",
    }
    made_from = (
        f"Step {candidate.step}, prompts `{candidate.data_sha256[:SHORT]}`, teacher `{candidate.recipe.teacher}`, "
        f"code `{candidate.code}`."
    )
    return BREAK.join(
        [
            _render_scores(scores, decision),
            " · ".join(f"[{text}]({link})" for text, link in links.items()),
            f"![contact sheet](get-artifact?path={sheet}&run_uuid={candidate.mlflow_run})",
            made_from,
        ]
    )


def _render_scores(scores: Scores, decision: Decision | None) -> str:
    if not scores.metrics:
        return "There is no judge for this teacher. Look at the images."
    gains = {summary.metric: summary.short for summary in decision.comparisons} if decision else {}
    beside = f" gain over version {decision.against} |" if decision and gains else ""
    lines = [f"| metric | value (95 % interval) | images |{beside}", "|---|---|---|" + ("---|" if beside else "")]
    for metric, summary in scores.metrics.items():
        gain = f" {gains.get(metric, '')} |" if beside else ""
        lines.append(f"| {metric} | {scores.format_metric(metric)} | {summary.images} |{gain}")
    return "\n".join(lines)


def set_state(client: MlflowClient, name: str, number: str, state: str) -> None:
    """Set a version's state: rewrite its page, then its tag."""
    version = client.get_model_version(name, number)
    write_page(client, name, number, state, version.tags.get(WHY, ""), (version.description or "").partition(BREAK)[2])
    set_tags(client, name, number, **{STATE: state})


def end_challenger(client: MlflowClient, name: str, number: str, successor: str) -> None:
    """Set the state of a challenger that another version replaces; one that was champion stays known as such."""
    if not client.get_model_version(name, number).tags.get(STATE, "").startswith(CHAMPION):
        set_state(client, name, number, f"{CHALLENGER} until {get_today()}, replaced by version {successor}")


def write_page(client: MlflowClient, name: str, number: str, state: str, reason: str, rest: str) -> None:
    """Write a version's description; lists of versions show the beginning of its first paragraph."""
    first = _explain(f"{state[:1].upper()}{state[1:]}", state, reason)
    client.update_model_version(name, number, description=f"{first}.{BREAK}{rest}")


def _explain(text: str, state: str, reason: str, label: str = ": ") -> str:
    """Return a state and its reason. The rule's is not the reason of a champion that a person chose."""
    chosen = state.startswith(f"{CHAMPION} since") and "," in state
    return f"{text}. The rule had said: {reason}" if chosen else f"{text}{label}{reason}"


def refresh_model_page(client: MlflowClient, name: str) -> None:
    """Write the model's own page: which version is the champion, since when, and why, before all others."""
    champion = get_aliases(client, name).get(CHAMPION)
    versions = sorted(list_versions(client, name), key=lambda version: str(version.version) != champion)
    head = "There is no champion."
    if champion is not None:
        tags = versions[0].tags
        state = tags.get(STATE, "")
        about = f"**Champion: version {champion}**, {score_of(tags)}: {state}"
        head = _explain(about, state, tags.get(WHY, "not written down"), label=". Why: ") + "."
    page = BREAK.join([head, _render_versions(name, versions[:SHOWN]), USE.format(name=name)])
    client.update_registered_model(name, page)


def _render_versions(name: str, versions: Sequence[ModelVersion]) -> str:
    lines = ["| version | state | score | step | why |", "|---|---|---|---|---|"]
    for version in versions:
        tags = version.tags
        lines.append(
            f"| [{version.version}](#/models/{quote(name)}/versions/{version.version}) | {tags.get(STATE, '')} "
            f"| {score_of(tags)} | {tags.get(STEP, '')} | {tags.get(WHY, '')} |"
        )
    return "\n".join(lines)
