"""The notebooks run on a CPU, and the stored outputs are those of the run."""

import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra `notebooks` is not installed")
pytest.importorskip("ipykernel", reason="the extra `notebooks` is not installed")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "hub_card" / "notebooks"


def printed(notebook) -> list[str]:
    """The text that each cell prints or returns, which may come in several pieces; warnings of libraries apart."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        texts = [output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"]
        texts += [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
        found.append("".join(texts))
    return found


@pytest.mark.parametrize("name", ["translate", "train"])
def test_a_notebook(name, tmp_path, monkeypatch):
    folder = tmp_path / "hub_card" / "notebooks"
    folder.mkdir(parents=True)
    for shared in ("hub_card/de-en", "run_scripts"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    stored = printed(notebook)
    assert any(stored)
    done = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    assert printed(done) == stored
