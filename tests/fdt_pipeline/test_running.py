"""`run_pipeline`: inputs are fed to DALI by name, and each comes back with its own outputs."""

import numpy as np
import pytest

from fdt_pipeline.loader.graphs import Decoding, decoding_pipeline
from fdt_pipeline.loader.running import DaliError, DaliOptions, run_pipeline
from fdt_pipeline.shards.codec import encode
from tests.numbered import numbered_images

pytestmark = pytest.mark.dali


def run(inputs, prefetch, num_inputs, is_encoded=False):
    """The outputs are the inputs, decoded."""
    options = DaliOptions(1, prefetch).arguments(4, num_inputs)
    pipeline = decoding_pipeline(Decoding(is_encoded, 3), **options)
    return run_pipeline(pipeline, iter(inputs), lambda images: {"images": images})


def batches(count):
    """Each of another size, 1 to 4 images, as the last window of an epoch is smaller than the others."""
    return [numbered_images(20)[3 * i : 3 * i + 1 + i % 4] for i in range(count)]


def failing_after(items):
    yield from items
    raise OSError("gone")


def assert_returned(found, expected):
    for (item, [made]), given in zip(found, expected, strict=True):
        assert item is given
        assert np.array_equal(made.numpy(), given)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_every_input_comes_back_with_its_outputs_also_where_there_are_fewer_than_prefetch(count, prefetch):
    inputs = batches(count)
    assert_returned(run(inputs, prefetch, count), inputs)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_of_the_inputs_is_raised_after_the_outputs_of_those_before_it(count, prefetch):
    inputs, found = batches(count), []
    with pytest.raises(OSError, match="gone"):
        found.extend(run(failing_after(inputs), prefetch, 6))  # keeps what came before the error
    assert_returned(found, inputs)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_what_dali_cannot_decode_is_among_the_inputs_in_flight(prefetch):
    """DALI loses a whole batch to one bad sample, and has worked ahead by then; its report becomes one line."""
    files = [[np.frombuffer(encode(image, "png"), np.uint8)] for image in numbered_images(6)]
    files[4] = [np.concatenate([files[4][0][:45], np.zeros(15, np.uint8), files[4][0][60:]])]
    found = []
    with pytest.raises(DaliError) as caught:
        found.extend(run(files, prefetch, 6, is_encoded=True))
    assert len(found) <= 4
    assert len(caught.value.inputs) <= max(1, prefetch)
    assert any(item is files[4] for item in caught.value.inputs)
    assert "\n" not in str(caught.value)
