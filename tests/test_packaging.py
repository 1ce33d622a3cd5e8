"""The wheel: what is in it, and that it imports where neither torch nor DALI is."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the checkout, as a build leaves files behind that the next one would ship."""
    out = tmp_path_factory.mktemp("wheel")
    copied = shutil.ignore_patterns(".git", "*.egg-info", "build", "runs", "data", "__pycache__", ".*cache", ".venv")
    shutil.copytree(ROOT, out / "source", ignore=copied)
    command = [sys.executable, "-m", "pip", "wheel", "./source", "--no-deps", "--no-build-isolation"]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare_site(wheel, tmp_path_factory):
    """A folder with the wheel and NumPy, and nothing else to import beside the standard library."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("numpy", "numpy.libs"):
        (site / name).symlink_to(Path(np.__file__).parents[1] / name)
    return site


def run_bare(site, code):
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


def test_the_wheel_ships_fdt_pipeline_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fdt_pipeline"}
    assert {
        "fdt_pipeline/definition/superposition.py",
        "fdt_pipeline/shards/writer.py",
        "fdt_pipeline/py.typed",
    } <= set(names)


def test_the_definition_works_with_numpy_alone(bare_site):
    done = run_bare(
        bare_site,
        "import fdt_pipeline as f\n"
        "plan = f.draw_plan(1, 0, 0, f.Pool([0, 1, 2], 3), f.FDT(min_images=3))\n"
        "print(f.superpose_targets(plan, 3).sum(), 'torch' in sys.modules)",
    )
    assert done.stdout.split() == ["1.0", "False"], done.stderr


def test_the_loader_says_what_to_install_where_dali_is_missing(bare_site):
    done = run_bare(bare_site, "from fdt_pipeline import FDTLoader")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: the pipeline needs NVIDIA DALI")


@pytest.mark.process
def test_models_and_losses_import_without_dali():
    code = (
        "import sys; sys.modules['nvidia.dali'] = None; sys.modules['nvidia'] = None\n"
        "import models, fdt_pipeline.losses, train.attack, train.robustness, train.recipes, fdt_pipeline\n"
        "from fdt_pipeline import FDT, Harmonic, draw_plan"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
