"""Upload of a local folder to a run's artifacts, checked by reading it back."""

import hashlib
import tempfile
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError

ATTEMPTS = 2  # another process may write the same files at the same time


def upload_artifacts(client: MlflowClient, run_id: str, local: Path, artifact_path: str) -> None:
    """Upload the files that the artifacts lack, and check each stored file's SHA-256.

    Raises:
        UserError: if the store returns other content than was uploaded.
    """
    for _ in range(ATTEMPTS):
        wanted = find_differing_files(client, run_id, local, artifact_path)
        if not wanted:
            return
        if wanted == _list_files(local):
            client.log_artifacts(run_id, str(local), artifact_path)
            continue
        for name in wanted:
            client.log_artifact(run_id, str(local / name), (Path(artifact_path) / name).parent.as_posix())
    wrong = find_differing_files(client, run_id, local, artifact_path)
    if wrong:
        raise UserError(f"{artifact_path}/{wrong[0]}: the artifact store does not hold what was uploaded")


def find_differing_files(client: MlflowClient, run_id: str, local: Path, artifact_path: str) -> list[str]:
    """Return the files that the artifacts lack or hold differently, by reading them back."""
    stored_names = _list_artifacts(client, run_id, artifact_path)
    root = client.get_run(run_id).info.artifact_uri
    return [
        name
        for name in _list_files(local)
        if f"{artifact_path}/{name}" not in stored_names
        or _hash_artifact(client, f"{root}/{artifact_path}/{name}") != _hash_file(local / name)
    ]


def _list_files(local: Path) -> list[str]:
    return sorted(file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file())


def _list_artifacts(client: MlflowClient, run_id: str, artifact_path: str) -> set[str]:
    paths: set[str] = set()
    for entry in client.list_artifacts(run_id, artifact_path):
        paths |= _list_artifacts(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return paths


def _hash_artifact(client: MlflowClient, uri: str) -> str:
    """Return the hash of a stored file; files are downloaded one at a time to limit disk use."""
    with tempfile.TemporaryDirectory() as scratch:
        downloaded = mlflow.artifacts.download_artifacts(
            artifact_uri=uri, dst_path=scratch, tracking_uri=client.tracking_uri
        )
        return _hash_file(Path(downloaded))


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
