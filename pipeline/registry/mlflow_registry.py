"""Access to MLflow's model registry: names of tags and aliases, models and versions."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import invalid

CHAMPION, CHALLENGER = "champion", "challenger"
STUDENT, EVALUATION = "student_sha256", "evaluation_sha256"  # tags of a version
STATE, WHY, METRIC, STEP, PREVIOUS = "state", "why", "metric", "step", "previous_champion"
MODEL_ID = "model_id"  # a tag: the logged model of the same student
DECIDED = "decided_on"  # the evaluations of a decision; written last, so that an interrupted decision is repeated


def list_models(client: MlflowClient) -> list[str]:
    """Return the names of all registered models, sorted."""
    names, token = [], None
    while page := client.search_registered_models(page_token=token):
        names += [model.name for model in page]
        if not (token := page.token):
            break
    return sorted(names)


def is_model(client: MlflowClient, name: str) -> bool:
    """Tell whether a model of this name is registered."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def list_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Return the versions of a registered model, newest first."""
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: -int(version.version))


def get_version(client: MlflowClient, name: str, number: str, field: str) -> ModelVersion:
    """Return an existing version; `field` is the option that named it."""
    versions = list_versions(client, name)
    for version in versions:
        if str(version.version) == number:
            return version
    allowed = ", ".join(str(version.version) for version in reversed(versions))
    raise invalid(field, number, f"a version of {name}: {allowed}")


def require_model(client: MlflowClient, name: str) -> None:
    """Raise a UserError if no model of this name is registered."""
    if not is_model(client, name):
        raise invalid("name", name, f"a registered model: {', '.join(list_models(client)) or 'there is none yet'}")


def get_aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the version number by alias."""
    return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def ensure_model(client: MlflowClient, name: str) -> None:
    """Create the registered model if it does not exist."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def set_tags(client: MlflowClient, name: str, number: str, **values: str) -> None:
    """Set tags of a version."""
    for key, value in values.items():
        client.set_model_version_tag(name, number, key, value)
