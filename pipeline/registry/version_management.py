"""Registered versions: listing, promotion by hand and rollback."""

import time
from dataclasses import dataclass

from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.registry import descriptions, mlflow_registry
from pipeline.registry.mlflow_registry import CHALLENGER, CHAMPION, PREVIOUS, STATE, WHY


def list_rows(tracking_uri: str, name: str | None = None) -> list[dict[str, str]]:
    """Return one row per version of every model, or of one, newest first."""
    with tracking.open_client(tracking_uri) as client:
        if name is not None:
            mlflow_registry.require_model(client, name)
        return [
            row
            for model in ([name] if name else mlflow_registry.list_models(client))
            for row in _build_rows(client, model)
        ]


def _build_rows(client: MlflowClient, name: str) -> list[dict[str, str]]:
    alias_of = {number: alias for alias, number in mlflow_registry.get_aliases(client, name).items()}
    return [
        {
            "model": name,
            "version": str(version.version),
            "alias": alias_of.get(str(version.version), ""),
            "score": descriptions.score_of(version.tags),
            "step": version.tags.get(mlflow_registry.STEP, ""),
            "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.creation_timestamp / 1000)),
            "why": _explain_decision(version.tags, str(version.version) in alias_of),
        }
        for version in mlflow_registry.list_versions(client, name)
    ]


def _explain_decision(tags: dict[str, str], named: bool) -> str:
    """Return the decision, and for a former champion first its replacement."""
    return tags.get(WHY, "") if named else "; ".join(filter(None, (tags.get(STATE, ""), tags.get(WHY, ""))))


@dataclass(frozen=True)
class Champion:
    """The champion of a registered model."""

    version: str
    student_sha256: str


def find_champion(tracking_uri: str, name: str) -> Champion | None:
    """Return the champion, or None if the model has none yet."""
    with tracking.open_client(tracking_uri) as client:
        number = (
            mlflow_registry.get_aliases(client, name).get(CHAMPION) if mlflow_registry.is_model(client, name) else None
        )
        if number is None:
            return None
        return Champion(number, client.get_model_version(name, number).tags[mlflow_registry.STUDENT])


def roll_back(tracking_uri: str, name: str, to: str | None = None) -> dict[str, str]:
    """Make the previous champion, or the version `to`, the champion again; return both versions.

    The decision is recorded before the alias moves, so that an interrupted call can be repeated.
    """
    with tracking.open_client(tracking_uri) as client:
        mlflow_registry.require_model(client, name)
        current = mlflow_registry.get_aliases(client, name).get(CHAMPION)
        if current is None:
            raise UserError(
                f"name: {name} has no champion to roll back from. Run `python -m jobs models promote --name {name} "
                "--version VERSION` to make one."
            )
        target = to or client.get_model_version(name, current).tags.get(PREVIOUS)
        if not target:
            raise UserError(
                f"name: version {current} of {name} has no champion before it. Register a second student, or pass "
                "--to VERSION."
            )
        _make_champion(client, name, current, target, "to", f"rolled back from version {current}", "rolled back to")
        return {"model": name, "from": current, "to": target}


def promote(tracking_uri: str, name: str, version: str) -> dict[str, str]:
    """Make a version the champion by hand, regardless of its scores; return it and the previous champion, if any."""
    with tracking.open_client(tracking_uri) as client:
        mlflow_registry.require_model(client, name)
        current = mlflow_registry.get_aliases(client, name).get(CHAMPION)
        _make_champion(
            client, name, current, version, "version", "promoted by hand", "replaced by hand by", replaces_current=True
        )
        return {"model": name, "from": current or "", "to": version}


def _make_champion(
    client: MlflowClient,
    name: str,
    current: str | None,
    target: str,
    field: str,
    reason: str,
    current_state: str,
    *,
    replaces_current: bool = False,
) -> None:
    """Move the alias, and record the reason on both versions; the newest other version becomes the challenger.

    With `replaces_current`, or for a version that was never champion, a later rollback returns to the champion that it
    replaces; a former champion keeps the predecessor that it had then.
    """
    version = mlflow_registry.get_version(client, name, target, field)
    if target == current:
        raise UserError(f"{field}: version {target} of {name} is the champion already")
    if current and (replaces_current or not version.tags.get(STATE, "").startswith(CHAMPION)):
        mlflow_registry.set_tags(client, name, target, **{PREVIOUS: current})
    day = descriptions.get_today()
    if current:
        descriptions.set_state(client, name, current, f"{CHAMPION} until {day}, {current_state} version {target}")
    descriptions.set_state(client, name, target, f"{CHAMPION} since {day}, {reason}")
    client.set_registered_model_alias(name, CHAMPION, target)
    _restore_challenger(client, name, target)
    descriptions.refresh_model_page(client, name)


def _restore_challenger(client: MlflowClient, name: str, champion: str) -> None:
    """Keep the challenger the newest version that is not the champion."""
    numbers = [str(version.version) for version in mlflow_registry.list_versions(client, name)]
    newest = next((number for number in numbers if number != champion), None)
    current = mlflow_registry.get_aliases(client, name).get(CHALLENGER)
    if newest and newest != current:
        client.set_registered_model_alias(name, CHALLENGER, newest)
        if current and current != champion:
            descriptions.end_challenger(client, name, current, newest)
    elif not newest and current:
        client.delete_registered_model_alias(name, CHALLENGER)
