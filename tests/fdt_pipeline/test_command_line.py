"""How the command lines, `fdt-pipeline`, `python -m tools` and `python -m train`, end."""

import argparse
import runpy
import sys

import pytest

from fdt_pipeline.cli import main as cli
from fdt_pipeline.cli import run_verb
from tools.__main__ import main as tools
from train.__main__ import main as train


@pytest.mark.parametrize(
    ("main", "command"),
    [
        (cli, ["info", "no/such/shards"]),
        (tools, ["bench", "no/such/shards"]),
        (train, ["robustness", "no/such/run"]),
    ],
)
def test_debug_shows_where_an_error_comes_from_and_without_it_there_is_one_line(main, command, capsys):
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert main([*command, "--debug"]) == 2
    traced = capsys.readouterr().err
    assert traced.startswith("Traceback (most recent call last):")
    assert traced.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("error", "options", "code", "printed"),
    [
        (ValueError("x"), {}, 2, "error: x\n"),
        (FileNotFoundError("x"), {}, 2, "error: x\n"),
        (ImportError("x"), {}, 1, "error: x\n"),
        (UnicodeError("x"), {}, 1, "error: x\n"),
        (KeyboardInterrupt(), {}, 130, ""),
        (KeyboardInterrupt(), {"interrupted": "run it again"}, 130, "\ninterrupted: run it again\n"),
    ],
)
def test_an_error_has_the_code_of_its_kind_the_verbs_own_kinds_first(error, options, code, printed, capsys):
    """Ctrl-C says how to go on where the verb can. An error of another kind is raised."""
    codes = {ImportError: 1, UnicodeError: 1}

    def ends_with(found):
        def run(arguments):
            raise found

        return run_verb(run, argparse.Namespace(debug=False, **options), codes)

    assert ends_with(error) == code
    assert capsys.readouterr().err == printed
    with pytest.raises(TypeError):
        ends_with(TypeError())


@pytest.mark.parametrize(
    ("package", "imported"),
    [("fdt_pipeline", "fdt_pipeline.cli.index"), ("tools", "tools.bench.command"), ("train", "train.recipes")],
)
def test_ctrl_c_during_the_imports_ends_without_a_traceback(package, imported, monkeypatch):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == imported:
                raise KeyboardInterrupt

    for name in (imported, imported.rpartition(".")[0] + ".__main__", f"{package}.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if imported != "train.recipes":
        monkeypatch.delattr(imported, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(package, run_name="__main__")
    assert ended.value.code == 130
