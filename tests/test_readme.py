"What README says can be done can be done"
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibkd.cli import handed_over, main, parsed, selected

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_third_line_says_what_is_reproduced():
    assert "So far:" in README.splitlines()[2]


def test_the_snippets_run_as_they_stand(tmp_path):
    "All of them in order, as one script in a folder of nobody's"
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks) + "\nprint(table.ece.between(0, 1).all(), 0 < loss < 20, .3 < T < 5)\n", "utf-8")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert len(blocks) >= 3 and done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[0] == "True" and done.stdout.count("True") + done.stdout.count("tensor(True)") >= 3


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
