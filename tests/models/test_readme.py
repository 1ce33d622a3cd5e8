import re
from pathlib import Path

import models


def test_the_example_runs_and_prints_what_it_says(capsys):
    page = Path(models.__file__).with_name("README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == re.findall(r"print\(.*\)  # (\d+)", example)
