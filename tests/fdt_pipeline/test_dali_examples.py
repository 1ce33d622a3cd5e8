"""The two examples that need nothing but DALI, on either of its versions."""

import pytest

from tests.example_runs import run_example

pytestmark = [pytest.mark.process, pytest.mark.dali]


@pytest.mark.parametrize(("name", "num_steps"), [("dali_iterator", 10), ("own_dali_pipeline", 8)])
def test_they_train_for_two_epochs_or_as_many_steps_as_asked(few_shards, tmp_path, name, num_steps):
    whole = run_example(name, few_shards, tmp_path, "--epochs", 2)
    assert list(whole.losses) == list(range(1, num_steps + 1))
    assert list(run_example(name, few_shards, tmp_path, "--steps", 2).losses) == [1, 2]
