"What the tests ask of every figure."
from matplotlib.text import Text

from calibkd import plots


def paper_ready(fig) -> bool:
    "Nothing is cut off, and nothing is printed too small"
    with plots.style():
        fig.canvas.draw()
        box = fig.get_tightbbox()
    fits = box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < fig.get_figwidth() + 0.01 and box.y1 < fig.get_figheight() + 0.01
    return fits and min(t.get_fontsize() for t in fig.findobj(Text) if t.get_text().strip()) >= 6.5
