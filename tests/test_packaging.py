"""The wheel: what is in it, what works without torch or DALI, and that all of it works outside of a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
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
def bare(wheel, tmp_path_factory):
    """Runs code that finds the wheel and NumPy, and nothing else beside the standard library."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("numpy", "numpy.libs"):
        (site / name).symlink_to(Path(np.__file__).parents[1] / name)

    def run(code):
        command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_the_wheel_ships_fdt_pipeline_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fdt_pipeline"}
    assert {"fdt_pipeline/definition/superposition.py", "fdt_pipeline/py.typed"} <= set(names)


def test_the_definition_works_with_numpy_alone(bare):
    done = bare(
        "import fdt_pipeline as f\n"
        "plan = f.draw_plan(1, 0, 0, f.Pool([0, 1, 2], 3), f.FDT(min_images=3))\n"
        "print(f.superpose_targets(plan, 3).sum(), 'torch' in sys.modules)"
    )
    assert done.stdout.split() == ["1.0", "False"], done.stderr


def test_the_loader_says_what_to_install_where_dali_is_missing(bare):
    done = bare("from fdt_pipeline import FDTLoader")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: the pipeline needs NVIDIA DALI")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a virtual environment with the wheel, in an empty folder, and returns what it prints.

    pip installs the wheel by itself; what it depends on comes after it on the path, the checkout never.
    """
    folder, environment = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    command = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--no-deps"]
    subprocess.run([*command, "--ignore-installed", "--no-index", wheel], check=True, capture_output=True)
    [site] = (environment / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if "site-packages" in path] or [sysconfig.get_path("purelib")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *arguments):
        command = [environment / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def with_shards(installed):
    """The same, where the installed program has made shards of an .npz."""
    arrays = "images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), labels=np.arange(40) % 4"
    installed("python", "-c", f"import numpy as np; np.savez('set.npz', {arrays})")
    installed("fdt-pipeline", "shard", "set.npz", "shards")
    return installed


@pytest.mark.process
def test_the_installed_program_makes_checks_describes_draws_and_converts_shards(with_shards):
    run = with_shards
    assert run("fdt-pipeline", "verify", "shards") == "shards: fine\n"
    assert json.loads(run("fdt-pipeline", "info", "shards", "--json"))["shape"] == [8, 8, 3]
    assert run("fdt-pipeline", "index", "shards").endswith("40 samples, unchanged\n")
    for options in ([], ["--superpose"]):
        run("fdt-pipeline", "preview", "shards", "--out", "sheet.png", *options)
        assert run("python", "-c", "print(open('sheet.png', 'rb').read(4))") == "b'\\x89PNG'\n"
    run("fdt-pipeline", "convert", "shards", "webp", "--encode", "webp")
    assert run("python", "-m", "fdt_pipeline", "verify", "webp", "--decode") == "webp: fine\n"


@pytest.mark.process
@pytest.mark.dali
def test_the_installed_package_builds_its_operators_and_loads_a_batch(with_shards):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    assert "compiled in" in (built := with_shards("fdt-pipeline", "build")) or "there already" in built
    assert json.loads(with_shards("fdt-pipeline", "doctor", "--json"))["engine"]["cpu"] == "native"
    code = (
        "import fdt_pipeline; from fdt_pipeline import FDT, FDTLoader\n"
        "images, targets = next(iter(FDTLoader('shards', batch_size=10, mix=FDT(), engine='native')))\n"
        "print(tuple(images.shape), targets.sum(1).round().tolist() == [1.0] * 10, fdt_pipeline.__file__)"
    )
    printed = with_shards("python", "-c", code)
    assert printed.startswith("(10, 3, 8, 8) True ")
    assert str(ROOT) not in printed


@pytest.mark.process
def test_the_installed_package_brings_tensor_normalization_and_the_losses_and_dir_lists_every_name(installed):
    code = (
        "import torch; import fdt_pipeline.losses\n"
        "from fdt_pipeline.tensor_norm import ReLUTensorNorm, fold_tensor_norm, insert_tensor_norm\n"
        "network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())\n"
        "network = insert_tensor_norm(network)\n"
        "print(isinstance(network[2], ReLUTensorNorm), fold_tensor_norm(network.eval())[1], fdt_pipeline.losses)\n"
        "print(set(fdt_pipeline.__all__) - set(dir(fdt_pipeline)))"
    )
    network, names = installed("python", "-c", code).splitlines()
    assert network.startswith("True 0 <module 'fdt_pipeline.losses'")
    assert names == "set()"


@pytest.mark.process
def test_models_and_losses_import_without_dali():
    code = (
        "import sys; sys.modules['nvidia.dali'] = None; sys.modules['nvidia'] = None\n"
        "import models, fdt_pipeline.losses, train.attack, train.robustness, train.recipes, fdt_pipeline\n"
        "from fdt_pipeline import FDT, Harmonic, draw_plan"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
