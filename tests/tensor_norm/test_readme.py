import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("room", ["fdt_pipeline/tensor_norm", "models"])
def test_the_example_runs_and_prints_what_it_says(room, capsys):
    page = (ROOT / room / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == re.findall(r"print\(.*\)  # (\d+)", example)
