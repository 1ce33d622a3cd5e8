"""The two examples that need nothing but DALI, on either of its versions."""

import pytest

from tests.example_runs import run_example

pytestmark = [pytest.mark.process, pytest.mark.dali]


def test_the_pipelines_iterator_goes_through_whole_epochs(few_shards, tmp_path):
    found = run_example("dali_iterator", few_shards, tmp_path, "--epochs", 2)
    assert list(found.losses) == list(range(1, 11))


def test_superpose_in_a_pipeline_of_ones_own_trains(few_shards, tmp_path):
    found = run_example("own_dali_pipeline", few_shards, tmp_path, "--epochs", 2)
    assert list(found.losses) == list(range(1, 9))


@pytest.mark.parametrize("name", ["dali_iterator", "own_dali_pipeline"])
def test_either_stops_where_it_is_told(few_shards, tmp_path, name):
    assert list(run_example(name, few_shards, tmp_path, "--steps", 2).losses) == [1, 2]
