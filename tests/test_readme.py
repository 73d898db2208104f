"What README says can be done can be done"
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from calibkd.cli import handed_over, main, parsed, selected

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_third_line_says_what_is_reproduced():
    assert "So far:" in README.splitlines()[2]


def photographs(folder):
    "Two classes of a few images, as README asks for them"
    for part, number in (("train", 12), ("test", 4)):
        for shade, kind in ((60, "dark"), (190, "light")):
            (folder / part / kind).mkdir(parents=True)
            for i in range(number): Image.new("RGB", (40, 36), (shade, shade + 5 * i, 100)).save(folder / part / kind / f"{i}.png")


def test_the_snippets_run_as_they_stand(tmp_path):
    "All of them in order, as one script in a folder of nobody's, beside a folder of images"
    photographs(tmp_path / "photos")
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks) + "\nprint(table.ece.between(0, 1).all(), 0 < loss < 20, .3 < T < 5)\n"
                      "print(*compared.objective, len(compared), compared.nll.between(0, 20).all())\n", "utf-8")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert len(blocks) >= 3 and done.returncode == 0, done.stderr[-3000:]
    judged, said = (line.split() for line in done.stdout.splitlines()[-2:])
    assert len(judged) == 3 and all("True" in word for word in judged), judged
    assert said == ["NLL", "NLL", "KD", "FitNet", "AT", "RKD", "CRD", "DKD", "DIST", "9", "True"], said


def test_from_a_folder_to_a_table_are_twelve_lines():
    block, = (b for b in re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S) if "folder:" in b)
    assert len(block.splitlines()) == 12 and block.count("#") == 0


COMMANDS = re.findall(r"^    (calibkd [^#\n]*[^#\s])", README, flags=re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    "Names, presets and parameters exist and fit; nothing is started"
    words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', command)[1:]]
    assert words[0] in main.commands
    if words[0] != "run": return
    pairs = [(words[i + 1], words[i + 2]) for i, w in enumerate(words) if w == "-p"]
    preset = {"preset": words[words.index("--preset") + 1]} if "--preset" in words else {}
    for book in selected([] if "--all" in words else words[1:2], "--all" in words): handed_over(book, {k: parsed(v) for k, v in pairs} | preset)


def test_there_are_commands():
    assert len(COMMANDS) >= 8 and CliRunner().invoke(main, ["list"]).exit_code == 0
