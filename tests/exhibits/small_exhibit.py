"An exhibit of four parameters, and a notebook that makes one"
import json

from calibkd.exhibits import Exhibit

PRESETS = dict(smoke=dict(T=1, seeds=[0], dataset="textures", net=None), quick=dict(T=4.0, seeds=[0, 1, 2], dataset="textures", net=None),
               paper=dict(T=4.0, seeds=(0, 1), dataset="cifar100", net="resnet8"))
NAMES = dict(preset=None, T=None, seeds=None, dataset=None, net=None)


def make(**given): return Exhibit("fig_X", NAMES | given, **PRESETS)


def injected(**given):
    "What IPython remembers of a notebook whose parameters papermill was to set so, and the globals that result"
    cells = ["", "\n".join(f"{k} = {v}" for k, v in NAMES.items()), "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items()) + "\n", "ex = Exhibit("]
    return dict(In=cells, **given)


def notebook(head, *code, prose="# A title\n> A quote"):
    "The JSON of a notebook: a text cell, the parameters cell, code cells"
    cell = lambda source, tags: {"cell_type": "code", "metadata": tags, "source": source, "outputs": [], "execution_count": None}
    cells = [{"cell_type": "markdown", "metadata": {}, "source": prose}, cell(head, {"tags": ["parameters"]}), *(cell(c, {}) for c in code)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4})
