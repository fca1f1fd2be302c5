"""Models are given by a folder or by their name on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from .model_files import check_model_files


def check_folder(name: str | Path) -> None:
    """Refuse a folder that does not exist or has damaged files. A possible name on the Hub is not checked here.

    Raises:
        ValueError: naming the folder or the file.
    """
    path = Path(name)
    is_path = str(name).startswith((".", "/", "~")) or len(path.parts) > 2 or "\\" in str(name) or path.is_file()
    in_a_folder = len(path.parts) == 2 and path.parent.is_dir()
    if (is_path or in_a_folder) and not path.is_dir():
        raise ValueError(f"the folder {name} does not exist: give the folder of a saved model, or a name on the Hub")
    if path.is_dir():
        check_model_files(path)


def fetch_folder(name: str | Path, patterns: Sequence[str], **hub_options) -> Path:
    """The path of a local folder, or of a local copy of those files of a Hub repository that match `patterns`.

    Args:
        hub_options: options of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        ValueError: there is no such folder, and no such repository that can be read.
    """
    check_folder(name)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns), **hub_options))
    except RepositoryNotFoundError:
        raise ValueError(
            f"{name} is neither a folder nor a repository of the Hub that you can read: check the name, or log in"
        ) from None
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is not a folder and cannot be fetched from the Hub: {reason}") from None
