"""The Hugging Face Hub by huggingface_hub: files fetched, files uploaded, and in one line what went wrong."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmgpt.errors import CheckpointError, MmgptError, shown

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def download(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The directory of a repository's files of these names, at a branch, tag or commit. Raises CheckpointError."""
    from huggingface_hub import snapshot_download

    at = "" if revision is None else f" at revision {shown(revision)}"
    with _told(f"{repo_id}: not fetched from the Hub{at}"):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> "CommitInfo":
    """Put files into a repository in one commit; it is made where there is none. For the rest see `sharing.push`."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="mmgpt")
    with _told(f"{repo_id}: not uploaded to {api.endpoint}"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise CheckpointError(f"{repo_id}: is there already and is public; make it private on the Hub first")
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise CheckpointError(f"{repo_id}: has a tag {shown(tag)} already; choose another one")
        operations = [CommitOperationAdd(name, file) for name, file in files.items()]
        commit = api.create_commit(repo_id, operations, commit_message=message)
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except MmgptError:
        raise
    except Exception as error:  # a foreign service, which fails in many ways
        raise CheckpointError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such model, or the token does not open it"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return "the token is refused, or there is none; `hf auth login` or the variable HF_TOKEN gives one"
    if status == 403:
        return "the token does not allow it; take one that may write to it"
    return " ".join(str(error).split()) or type(error).__name__
