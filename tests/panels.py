"""Notebooks whose paths are in use but whose content is a panel of another: `python tests/panels.py` writes them anew.

The copy differs in one line, the default of `figure`, and in its outputs, which are those of its own run."""
import json
from pathlib import Path

NBS = Path(__file__).parents[1] / "nbs"
COPIES = {"fig_S3": "fig_S2", "fig_S8": "fig_S7"}  # panel: the notebook to edit
DEFAULT = "figure: str = None"


def copied(panel: str) -> dict:
    "The notebook as it should be: the cells of the other, the outputs that it has"
    book, mine = (json.loads((NBS / f"{name}.ipynb").read_text("utf-8")) for name in (COPIES[panel], panel))
    own = {cell["id"]: cell for cell in mine["cells"] if cell["cell_type"] == "code"}
    for cell in book["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            assert sum(line.startswith(DEFAULT) for line in cell["source"]) == 1
            cell["source"] = [line.replace(DEFAULT, f'figure: str = "{panel}"') for line in cell["source"]]
        if cell["cell_type"] == "code":
            made = own.get(cell["id"], {"outputs": [], "execution_count": None})
            cell |= {"outputs": made["outputs"], "execution_count": made["execution_count"]}
    return book | {"metadata": mine["metadata"]}


if __name__ == "__main__":
    for panel in COPIES: (NBS / f"{panel}.ipynb").write_text(json.dumps(copied(panel), indent=1, ensure_ascii=False) + "\n", "utf-8")
