"Flow charts: where arrows begin and end, how high bars are, what is refused."
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle

from calibkd.plots import Arrow, Node, flow

NODES = {"image": Node((1, 2), (.8, .6), "beneath", image=torch.rand(1, 4, 4)), "box": Node((3, 2), (1, .5), "inside"),
         "bars": Node((3, .6), (1, .5), bars=[0., .5, 1.])}


def ends(fig_and_axes):
    "First and last point of each arrow, rounded"
    curves = [p.get_path().vertices for p in fig_and_axes[1].patches if isinstance(p, FancyArrowPatch)]
    return [[tuple(round(float(v), 3) for v in c[i]) for i in (0, -1)] for c in curves]


@pytest.mark.parametrize("start, end, points", [
    ("image", "box", [(1.4, 2), (2.5, 2)]), ("box", "bars", [(3, 1.75), (3, .85)]), ("bars", "box", [(3, .85), (3, 1.75)]),
    ("box", "image", [(3, 1.75), (1, 2.39)])])
def test_an_arrow_goes_from_side_to_side_or_up_or_down(start, end, points):
    found = ends(flow(NODES, [Arrow(start, end, tie=True)], (4, 3)))
    assert found == [points]


def test_a_text_beneath_and_a_pile_are_not_crossed():
    image = NODES["image"]
    assert image.door(-1) == (1, pytest.approx(1.7 - .19)) and image.door(1) == (1, pytest.approx(2.3 + 2 * .045))
    assert NODES["bars"].door(-1) == NODES["bars"].side(0, -1) and NODES["box"].door(-1) == NODES["box"].side(0, -1)


def test_bars_are_as_high_as_they_say():
    _, ax = flow({"bars": NODES["bars"]}, [], (4, 2))
    _, *bars = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [p.get_height() for p in bars] == pytest.approx([0, .19, .38])


def test_an_arrow_to_nowhere_is_refused():
    with pytest.raises(ValueError, match="'boxx', which is no node.*box"): flow(NODES, [Arrow("image", "boxx")], (4, 3))
