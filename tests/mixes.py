"""Mixings of every kind, for tests of what holds for all of them."""

from hypothesis import strategies as st

from fdt_pipeline.definition.mixing import FDT, CutMix, MixUp, OneOf
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform

OPTIONS = {
    "probability": st.sampled_from([0.0, 0.4, 1.0]),
    "label_smoothing": st.sampled_from([0.0, 0.1]),
    "anchor": st.sampled_from(["random", "epoch"]),
    "unique_classes": st.booleans(),
}
ALPHAS = st.sampled_from([0.05, 0.2, 1, 8.0])


def fdt(most=4):
    """Sums of up to `most` images, or of as many as there are classes."""
    return st.builds(
        FDT,
        min_images=st.integers(1, min(4, most)),
        max_images=st.sampled_from([None, most]),
        series=st.sampled_from([Harmonic(), Power(2.8), Geometric(0.5), Uniform()]),
        **OPTIONS,
    )


def singles(most=4):
    return st.one_of(fdt(most), st.builds(MixUp, ALPHAS, **OPTIONS), st.builds(CutMix, ALPHAS, **OPTIONS))


def mixes(most=4):
    """One of them, or several by chance."""
    choices = st.lists(st.one_of(singles(most), st.none()), min_size=1, max_size=3).filter(any)
    several = choices.map(lambda found: OneOf([(mixing, 1 / len(found)) for mixing in found]))
    return st.one_of(singles(most), several)
