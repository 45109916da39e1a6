"""A folder to the Hugging Face hub, and what can be known to be wrong before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of


def check_push(name: str) -> Any:
    """The hub's API for a push to the repository `name`, OWNER/NAME.

    Raises:
        WeightsmithError: a name that the hub would refuse, no token, or a hub that is switched off.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise WeightsmithError(
            f"--push {name} is no name of a repository: give OWNER/NAME ({cause_of(error)})"
        ) from error
    if name.count("/") != 1:
        raise WeightsmithError(f"--push {name} names no owner: give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise WeightsmithError(
            f"--push {name} needs the hub, and HF_HUB_OFFLINE=1 switches it off: unset it, or push the folder later with "
            f"`hf upload {name} FOLDER`"
        )
    if get_token() is None:
        raise WeightsmithError(f"--push {name} needs a token of the hub: log in with `hf auth login`, or set HF_TOKEN")
    return HfApi()


def push(api: Any, folder: Path, name: str, private: bool, message: str) -> str:
    """Make the repository where it is not there, upload the folder as one commit, and return its address.

    Raises:
        WeightsmithError: whatever the hub refuses or the network loses, in one sentence; the folder stays.
    """
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message)
    except Exception as error:  # the hub's, httpx's and the system's own types: all mean that nothing was pushed
        raise WeightsmithError(
            f"--push {name} failed ({cause_of(error)}): {folder} is written, push it again with `hf upload {name} {folder}`"
        ) from error
    return str(commit.commit_url)
