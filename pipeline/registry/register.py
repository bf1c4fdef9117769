"""Registration of a student: artifacts, then the version, then its alias; a second call ends in the same state."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.tracking import MlflowClient

from pipeline import logged_models, manifest, notifications, tracking
from pipeline.hashing import hash_bytes
from pipeline.manifest import Manifest
from pipeline.notifications import Notification
from pipeline.recipe import Recipe, dump
from pipeline.recipe.notify import Event
from pipeline.registry import descriptions, mlflow_registry, version_artifacts
from pipeline.registry.artifact_upload import upload_artifacts
from pipeline.registry.candidate import SHORT, Candidate
from pipeline.registry.mlflow_registry import CHALLENGER, CHAMPION, DECIDED, METRIC, PREVIOUS, STATE, WHY
from pipeline.registry.promotion_decision import Decision, decide, decide_first
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.registry.student_scores import Scores
from pipeline.storage import Folder


class RegisteredManifest(Manifest):
    """The manifest of a registration: the student, its training run and the registered version."""

    command = "register"
    kind: Literal["register"] = "register"
    student_sha256: str
    mlflow_run: str
    model: str
    version: int
    alias: str
    uri: str
    decision: str

    @staticmethod
    def from_outcome(student_sha256: str, mlflow_run: str, outcome: RegisteredVersion) -> "RegisteredManifest":
        """Return the manifest of an outcome."""
        return RegisteredManifest(student_sha256=student_sha256, mlflow_run=mlflow_run, **asdict(outcome))


@dataclass(frozen=True)
class _Entry:
    """A candidate with its scores."""

    candidate: Candidate
    scores: Scores

    @property
    def recipe(self) -> Recipe:
        return self.candidate.recipe

    @property
    def name(self) -> str:
        return f"nasa-{self.recipe.name}"


def register(candidate: Candidate, tracking_uri: str) -> RegisteredVersion:
    """Register a student as one version per set of weights, assign its alias and return the version.

    A second call with another evaluation updates the scores, and decides again about a version that was never champion.
    """
    entry = _Entry(candidate, Scores.read(candidate.evaluation))
    with tracking.open_client(tracking_uri) as client:
        tracking.require_run(tracking_uri, candidate.mlflow_run)
        mlflow_registry.ensure_model(client, entry.name)
        number = _find_or_create_version(client, entry)
        _link_logged_model(client, entry, number)
        decision = _assign_alias(client, entry, number)
        descriptions.refresh_model_page(client, entry.name)
        if decision is not None:
            _announce(client, entry, number, decision, tracking_uri)
        return _get_registered_version(client, entry.name, number)


def register_run(distilled: Folder, evaluated: Folder, folder: Folder, tracking_uri: str) -> RegisteredVersion:
    """Register the student of a finished run, and record the result in `folder`."""
    candidate = Candidate.from_run(distilled, evaluated)
    outcome = register(candidate, tracking_uri)
    manifest.write(folder, RegisteredManifest.from_outcome(candidate.student_sha256, candidate.mlflow_run, outcome))
    return outcome


def _find_or_create_version(client: MlflowClient, entry: _Entry) -> str:
    """Return the version of this student with this evaluation: existing, updated or new."""
    number = _find_lowest_version(client, entry)
    if number is not None:
        tags = client.get_model_version(entry.name, number).tags
        if tags.get(mlflow_registry.EVALUATION) == entry.scores.sha256:
            return number
    with tempfile.TemporaryDirectory() as scratch:
        folder = version_artifacts.build_artifacts(entry.candidate, entry.scores, entry.name, Path(scratch))
        upload_artifacts(client, entry.candidate.mlflow_run, folder, entry.candidate.artifact_path)
    if number is None:
        return _create(client, entry)
    _describe(client, entry, number, None)
    mlflow_registry.set_tags(client, entry.name, number, **_build_tags(entry))
    return number


def _create(client: MlflowClient, entry: _Entry) -> str:
    """Create a version. If two processes race, keep the lower version number and delete the other."""
    run_id = entry.candidate.mlflow_run
    source = f"{client.get_run(run_id).info.artifact_uri}/{entry.candidate.artifact_path}"
    created = str(
        client.create_model_version(entry.name, source=source, run_id=run_id, tags=_build_tags(entry)).version
    )
    lowest = _find_lowest_version(client, entry)
    assert lowest is not None
    if lowest != created:
        client.delete_model_version(entry.name, created)
    return lowest


def _find_lowest_version(client: MlflowClient, entry: _Entry) -> str | None:
    matching = [
        str(version.version)
        for version in mlflow_registry.list_versions(client, entry.name)
        if version.tags.get(mlflow_registry.STUDENT) == entry.candidate.student_sha256
    ]
    return matching[-1] if matching else None


def _link_logged_model(client: MlflowClient, entry: _Entry, number: str) -> None:
    """Link a version and the logged model of its student to each other."""
    model_id = logged_models.ensure(client, entry.candidate.trained)
    logged_models.link_version(client, model_id, entry.name, number)
    mlflow_registry.set_tags(client, entry.name, number, **{mlflow_registry.MODEL_ID: model_id})


def _build_tags(entry: _Entry) -> dict[str, str]:
    """Return scores and lineage as tags, to read and to search."""
    candidate, scale = entry.candidate, entry.scores.chosen_scale
    scores = {metric: entry.scores.format_metric(metric) for metric in entry.scores.metrics}
    return {**scores, **({} if scale is None else {"nasa_scale": f"{scale:g}"})} | {
        METRIC: entry.recipe.promotion.metric,
        mlflow_registry.STEP: str(candidate.step),
        mlflow_registry.STUDENT: candidate.student_sha256,
        mlflow_registry.EVALUATION: entry.scores.sha256,
        "data_sha256": candidate.data_sha256,
        "recipe_sha256": hash_bytes(dump(candidate.recipe).encode()),
        "teacher": candidate.recipe.teacher,
        "teacher_sha256": candidate.teacher_sha256,
        "code": candidate.code,
    }


def _announce(client: MlflowClient, entry: _Entry, number: str, decision: Decision, tracking_uri: str) -> None:
    """Tag the run with the event, and notify the address of the recipe that the student was trained with."""
    event: Event = "promoted" if decision.promoted else "challenger"
    run_id = entry.candidate.mlflow_run
    client.set_tag(run_id, notifications.LAST_EVENT, event)
    link = notifications.build_link(tracking_uri, f"models/{entry.name}/versions/{number}")
    notifications.send(entry.recipe.notify, Notification(event, entry.name, int(number), run_id, link))


def _assign_alias(client: MlflowClient, entry: _Entry, number: str) -> Decision | None:
    """Decide about a version and assign its alias, once per pair of evaluations, unless it is a replaced champion.

    Returns:
        The decision, or None if there was nothing to decide.
    """
    tags = client.get_model_version(entry.name, number).tags
    champion = mlflow_registry.get_aliases(client, entry.name).get(CHAMPION)
    if number == champion:
        _set_champion(client, entry.name, number)  # completes an interrupted call
    if number == champion or tags.get(STATE, "").startswith(CHAMPION):
        return None
    made_of = f"evaluation {entry.scores.sha256[:SHORT]}"
    if champion is not None:
        champion_evaluation = client.get_model_version(entry.name, champion).tags.get(mlflow_registry.EVALUATION, "")
        made_of += f" against version {champion} with evaluation {champion_evaluation[:SHORT]}"
    if tags.get(DECIDED) == made_of:
        return None
    decision = _decide(client, entry, champion)
    _record_decision(client, entry, number, decision, made_of)
    if decision.promoted:
        _set_champion(client, entry.name, number)
    else:
        _set_challenger(client, entry.name, number)
        mlflow_registry.set_tags(client, entry.name, number, **{DECIDED: made_of})
    return decision


def _decide(client: MlflowClient, entry: _Entry, champion: str | None) -> Decision:
    rule = entry.recipe.promotion
    if champion is None:
        return decide_first(rule, entry.scores)
    return decide(rule, entry.scores, _read_scores(client, entry.name, champion), champion)


def _read_scores(client: MlflowClient, name: str, number: str) -> Scores:
    """Return a version's scores from its artifacts; none for a version without an evaluation."""
    version = client.get_model_version(name, number)
    if mlflow_registry.EVALUATION not in version.tags:
        return Scores({}, {}, "")
    with tempfile.TemporaryDirectory() as scratch:
        artifact_uri = f"{version.source}/{version_artifacts.EVALUATION}"
        local = mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, dst_path=scratch)
        return Scores.read(Folder.from_uri(local))


def _record_decision(client: MlflowClient, entry: _Entry, number: str, decision: Decision, made_of: str) -> None:
    """Record a decision as an artifact, as tags and in the description, before the alias moves."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / version_artifacts.DECISION
        record = {"model": entry.name, "version": int(number), "made_of": made_of, **decision.to_dict()}
        file.write_text(json.dumps(record, indent=2) + "\n")
        client.log_artifact(entry.candidate.mlflow_run, str(file), entry.candidate.artifact_path)
    mlflow_registry.set_tags(client, entry.name, number, **{WHY: decision.verdict, PREVIOUS: decision.against})
    _describe(client, entry, number, decision)


def _describe(client: MlflowClient, entry: _Entry, number: str, decision: Decision | None) -> None:
    tags = client.get_model_version(entry.name, number).tags
    rest = descriptions.render_version_description(client, entry.candidate, entry.scores, decision)
    descriptions.write_page(client, entry.name, number, tags.get(STATE, "new"), tags.get(WHY, ""), rest)


def _set_champion(client: MlflowClient, name: str, number: str) -> None:
    """Make a version the champion; idempotent."""
    client.set_registered_model_alias(name, CHAMPION, number)
    if mlflow_registry.get_aliases(client, name).get(CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)
    tags = client.get_model_version(name, number).tags
    before = tags.get(PREVIOUS)
    since = f"{CHAMPION} since {descriptions.get_today()}"
    if before and client.get_model_version(name, before).tags.get(STATE, "").startswith(f"{CHAMPION} since"):
        descriptions.set_state(
            client, name, before, f"{CHAMPION} until {descriptions.get_today()}, replaced by version {number}"
        )
    if not tags.get(STATE, "").startswith(CHAMPION):
        descriptions.set_state(client, name, number, since)


def _set_challenger(client: MlflowClient, name: str, number: str) -> None:
    """Make a version the challenger, the newest one that is not the champion, and retag the previous one."""
    before = mlflow_registry.get_aliases(client, name).get(CHALLENGER)
    if before is not None and before != number:
        descriptions.end_challenger(client, name, before, number)
    client.set_registered_model_alias(name, CHALLENGER, number)
    descriptions.set_state(client, name, number, f"{CHALLENGER} since {descriptions.get_today()}")


def _get_registered_version(client: MlflowClient, name: str, number: str) -> RegisteredVersion:
    aliases = [alias for alias, version in mlflow_registry.get_aliases(client, name).items() if version == number]
    return RegisteredVersion(
        model=name,
        version=int(number),
        alias=aliases[0] if aliases else "",
        uri=f"models:/{name}/{number}",
        decision=client.get_model_version(name, number).tags.get(WHY, ""),
    )
