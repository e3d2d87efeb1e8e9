"""An exported model as a repository of the Hugging Face hub, through ``huggingface_hub``."""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import ConfigError, first_line
from harness.deploy.export_format import read_facts


def push_to_hub(folder: Path | str, repository: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload an exported model, and return the address of its commit.

    The repository is made if it does not exist. Log in first with ``hf auth login``, or set ``HF_TOKEN``.

    Args:
        repository: ``"owner/name"``.
        private: of a new repository; an existing one stays as it is.
        endpoint: of the hub; default ``$HF_ENDPOINT``, or huggingface.co.

    Raises:
        ResultError: the folder is no complete export.
        ConfigError: the hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    folder = Path(folder).expanduser()
    facts = read_facts(folder)
    hub = HfApi(endpoint=endpoint)
    try:
        made = hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=f"{facts.cell.method} {facts.cell.point} on {facts.cell.dataset}",
        )
    # The HTTP library, and so the errors of a server that does not answer, differs between versions of huggingface_hub.
    except Exception as error:
        raise ConfigError(
            f"'{repository}' cannot be uploaded ({type(error).__name__}: {first_line(error)}): the model is complete in {folder}; "
            "log in with 'hf auth login' or set HF_TOKEN, and check the name OWNER/NAME"
        ) from error
    return str(done.commit_url)
