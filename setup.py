"What pyproject.toml cannot say: a wheel carries the notebooks of exhibits and benches, too, without their outputs"
import json
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NBS = Path(__file__).parent / "nbs"


def without_outputs(path: Path) -> str:
    "A notebook as its author wrote it"
    book = json.loads(path.read_text("utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "code": cell |= {"outputs": [], "execution_count": None}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


class WithNotebooks(build_py):
    "Copies them into the tree that is packed, to calibkd/nbs; an editable installation has the repository's"
    def run(self) -> None:
        super().run()
        for path in [] if self.editable_mode else NBS.rglob("*.ipynb"):
            place = path.relative_to(NBS)
            if place.parts[0] in ("lib", "index.ipynb") or ".ipynb_checkpoints" in place.parts: continue
            target = Path(self.build_lib, "calibkd", "nbs", place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(without_outputs(path), "utf-8")


setup(cmdclass={"build_py": WithNotebooks})
