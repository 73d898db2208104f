"The paper's numbers beside ours"
import math
import pandas as pd
import pytest
from calibkd.exhibits import beside


def test_beside_never_shows_the_papers_number_as_ours():
    paper = pd.DataFrame({"top1": [60.2, 72.4], "ece": [2.1, math.nan]}, index=["resnet8", "resnet56"])
    ours = pd.DataFrame({"network": ["resnet8", "resnet8", "resnet20"], "seed": [0, 1, 0], "top1": [.60, .62, .7], "ece": [.02, math.nan, .03]})
    table = beside(paper, ours)
    assert table.index.tolist() == ["resnet8", "resnet56", "resnet20"]
    assert table["top1", "ours"].tolist() == ["61.00 ± 1.41 (2 seeds)", "not run", "70.00 (1 seed)"]
    assert table["ece", "paper"].tolist() == ["2.10", "–", "–"] and table["ece", "ours"].tolist() == ["2.00 (1 seed)", "not run", "3.00 (1 seed)"]
    with pytest.raises(ValueError, match="share network and seed"): beside(paper, ours.assign(seed=0))
    with pytest.raises(ValueError, match="did you mean 'network'"): beside(paper, ours, "netwrok")
