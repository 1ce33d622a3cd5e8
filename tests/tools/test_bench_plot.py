"""The picture can be drawn of whatever there is."""

import numpy as np
from PIL import Image

from tests.bench_results import contender, results, steady
from tools.bench.plot import draw


def size(found, tmp_path):
    path = tmp_path / "plot.png"
    draw(found, path)
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 10
        return image.size


def test_bars_alone(tmp_path):
    many = [contender(f"contender {i}", steady(10**i), mixing) for i, mixing in enumerate(["none", "fdt", "mixup"])]
    assert size(results(*many), tmp_path)[0] > 900


def test_sweeps_have_panels_of_their_own(tmp_path):
    one, other = contender("a", steady(100)), contender("b", steady(50), "fdt")
    plain = size(results(one, other), tmp_path)
    sweeps = {"classes": {str(c): [contender("a", steady(100 / c))] for c in (10, 100, 1000)}, "batch_sizes": {}}
    assert size(results(one, other, sweeps=sweeps), tmp_path)[1] > plain[1] + 300


def test_what_was_not_measured_is_left_out(tmp_path):
    assert size(results(contender("a", steady(1)), contender("b", [], status="failed", reason="x")), tmp_path)
