"""From sources to a library in the cache: once, whole, and never half. All but the last test build a small stand-in."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from fdt_pipeline.native import NativeUnavailable, build, recipe
from fdt_pipeline.native.build import SHOWN_LINES, BuildFailed, obtain
from fdt_pipeline.native.recipe import HEADER_WHEELS, core_recipe, operator_recipe
from tests.native_stand_in import PATIENCE, LoggingCompiler, at_once, building, read_only, start, write_sources

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Of this test alone; so are the folder for temporary files and the compiler."""
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path / "sources")


def obtained(sources):
    """The path of the core of these sources, in the build."""
    return obtain(core_recipe(csrc=sources)).path


def answer_of(library):
    return ctypes.CDLL(str(library)).fdt_answer()


def is_running(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.process
def test_eight_processes_at_once_build_once(tmp_path, sources, cache_folder):
    compiler = LoggingCompiler(tmp_path / "compiler", first="sleep 0.2")
    outputs = [output.strip() for output, _ in at_once(8, building(sources), CXX=compiler.path)]
    assert set(outputs) == {str(next(cache_folder.glob("*.so")))}
    assert compiler.num_links() == 1
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".lock", ".so"]


def test_a_library_is_built_once_and_then_found_without_a_compiler(sources, cache_folder, monkeypatch):
    first = obtain(core_recipe(csrc=sources))
    monkeypatch.setenv("PATH", "")
    second = obtain(core_recipe(csrc=sources))
    assert (answer_of(first.path), first.path, first.path.parent) == (42, second.path, cache_folder)
    assert first.seconds > 0 == second.seconds


def test_a_build_that_failed_is_tried_again_by_the_next_who_asks(tmp_path, sources, monkeypatch):
    broken = LoggingCompiler(tmp_path / "compiler", first="exit 3")
    monkeypatch.setenv("CXX", str(broken.path))
    with pytest.raises(BuildFailed, match="exit code 3"):
        obtained(sources)
    monkeypatch.setenv("CXX", "g++ -DkAnswer=kOther")  # its options are passed on
    assert answer_of(obtained(sources)) == 42
    assert "-DkAnswer=kOther" in core_recipe(csrc=sources).commands()[0]


@pytest.fixture
def endless_build(tmp_path, sources):
    """(a process whose compilers never end, the compiler's diary), once compilers run."""
    compiler = LoggingCompiler(tmp_path / "compiler", first="exec sleep 60")
    process = start(building(sources), CXX=compiler.path)
    deadline = time.monotonic() + 300
    while len(compiler.runs()) < min(2, len(os.sched_getaffinity(0))):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    yield process, compiler
    process.kill()
    process.communicate(timeout=PATIENCE)
    for process_id, _ in compiler.runs():
        if is_running(process_id):
            os.kill(process_id, signal.SIGKILL)


@pytest.mark.process
def test_a_killed_builder_leaves_no_library_and_no_stuck_lock(endless_build, sources, cache_folder):
    process, _ = endless_build
    process.kill()
    process.wait()
    assert list(cache_folder.glob("building-*"))
    assert build.find(core_recipe(csrc=sources).name) is None
    assert answer_of(obtained(sources)) == 42
    assert not list(cache_folder.glob("building-*"))


@pytest.mark.process
def test_ctrl_c_ends_the_compilers_and_leaves_no_lock(endless_build, sources, cache_folder):
    """A terminal sends it to them too."""
    process, compiler = endless_build
    os.killpg(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=300)[1]
    assert not [process_id for process_id, _ in compiler.runs() if is_running(process_id)]
    assert {path.name for path in cache_folder.iterdir()} <= {build.LOCK}
    assert answer_of(obtained(sources)) == 42


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:500] + b"?" + data[501:]])
def test_a_damaged_library_is_noticed_and_rebuilt(sources, damage):
    library = obtained(sources)
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert build.find(core_recipe(csrc=sources).name) is None
    assert obtained(sources).read_bytes() == whole


def test_a_library_in_a_read_only_cache_is_used_without_a_lock_or_a_write(sources, cache_folder):
    library = obtained(sources)
    process = start(read_only(cache_folder) + building(sources))
    assert process.communicate(timeout=PATIENCE) == (f"{library}\n", "")


@pytest.fixture
def blocked_cache(tmp_path, monkeypatch):
    """A cache folder that nobody can make, not even root, as there is a file above it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def test_a_cache_that_cannot_be_written_to_is_replaced_by_a_temporary_folder_that_is_named(sources, blocked_cache):
    with pytest.warns(RuntimeWarning, match=f"{blocked_cache} .* cannot be written to.*set FDT_PIPELINE_CACHE") as said:
        library = obtained(sources)
    assert (library.parent, len(said)) == (build.temporary_folder(), 1)
    assert build.temporary_folder().stat().st_mode & 0o777 == 0o700
    assert obtained(sources) == library  # in silence now


@pytest.mark.parametrize("full", ["cache", ""], ids=["the cache's disk", "every disk"])
def test_a_full_disk_is_named_with_what_to_do(tmp_path, sources, cache_folder, monkeypatch, full):
    compile_library = build.compile_library

    def fill(commands, folder):
        if folder.is_relative_to(tmp_path / full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return compile_library(commands, folder)

    monkeypatch.setattr(build, "compile_library", fill)
    match = f"{cache_folder} .No space left on device.*set FDT_PIPELINE_CACHE to"
    if full:
        with pytest.warns(RuntimeWarning, match=match):
            assert obtained(sources).parent == build.temporary_folder()
    else:
        with pytest.raises(NativeUnavailable, match=match):
            obtained(sources)
    assert {path.name for path in cache_folder.iterdir()} <= {build.LOCK}


TRAPS = {
    "a link": lambda folder: folder.symlink_to(tempfile.mkdtemp()),
    "open to all": lambda folder: folder.mkdir() or folder.chmod(0o777),
    "a file": Path.touch,
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_no_code_is_loaded_from_a_temporary_folder_that_is_not_ours_alone(sources, blocked_cache, trap):
    trap(build.temporary_folder())
    with pytest.raises(NativeUnavailable, match="set FDT_PIPELINE_CACHE"):
        obtained(sources)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    assert build.cache_folder() == Path(os.environ["FDT_PIPELINE_CACHE"])
    monkeypatch.delenv("FDT_PIPELINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert build.cache_folder() == Path("/somewhere/fdt_pipeline")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard says to ignore")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert build.cache_folder() == Path("/home/somebody/.cache/fdt_pipeline")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert build.cache_folder() == Path("/.cache/fdt_pipeline")


def change_file(name, text):
    return lambda sources, _: (sources / name).write_text(text)


def patch(target, value):
    return lambda _, monkeypatch: monkeypatch.setattr(target, value)


INGREDIENTS = {
    "a source": change_file("pool_api.cc", "int other;\n"),
    "a header of ours": change_file("answer.h", "constexpr int kAnswer = 43;\n"),
    "the GPU's source": change_file("superpose.cu", "__global__ void f() {}\n"),
    "one more source": change_file("more.cc", "int more;\n"),
    "DALI's version": patch("fdt_pipeline.dali.version", lambda: "2.5.0"),
    "DALI's wheel": patch("fdt_pipeline.dali.installed_wheels", lambda: ["nvidia-dali-cuda120"]),
    "the C library": patch("platform.libc_ver", lambda: ("glibc", "2.99")),
    "the machine": patch("platform.machine", lambda: "aarch64"),
    "flags": patch("fdt_pipeline.native.recipe.COMMON_FLAGS", ("-O2",)),
    "DALI's flags": patch("nvidia.dali.sysconfig.get_compile_flags", lambda: ["-I/x", "-D_GLIBCXX_USE_CXX11_ABI=7"]),
}


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_the_key_changes_with(ingredient, sources, monkeypatch):
    before = operator_recipe(sources).name
    INGREDIENTS[ingredient](sources, monkeypatch)
    assert operator_recipe(sources).name != before


def test_the_key_does_not_change_with_the_place(tmp_path, sources):
    shutil.copytree(sources, tmp_path / "elsewhere")
    assert operator_recipe(sources).name == operator_recipe(tmp_path / "elsewhere").name


@pytest.mark.skipif("v2" not in recipe.LEVELS, reason="levels of x86-64")
def test_the_kernel_is_compiled_for_every_level_and_the_rest_for_the_lowest(sources):
    flags = {name: set(flags) for name, _, flags in core_recipe(csrc=sources).runs()}
    for level in ("v2", "v3", "v4"):
        assert {f"-march=x86-64-{level}", f"-DFDT_ISA={level}"} <= flags[f"kernel.{level}"]
    assert "-march=x86-64-v2" in flags["pool_api"]


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("PATH", "", r"apt-get install g\+\+.*engine=\"torch\""),
        ("CXX", "g++-nowhere -m64", r"CXX=g\+\+-nowhere -m64 is not a program"),
        ("CXX", "g++ -march=not-yet-known", r"needs g\+\+ 11 or clang 12, or newer(.|\n)*not-yet-known"),
    ],
)
def test_what_is_wrong_with_the_compiler_is_said_with_what_to_install(sources, monkeypatch, variable, value, match):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(recipe, "LEVELS", {"generic": ()})  # the flags of another processor
    with pytest.raises(NativeUnavailable, match=match):
        obtained(sources)


def test_a_compilation_that_fails_shows_the_last_of_the_compilers_words_the_command_and_the_way_out(sources):
    warnings = "".join(f"#warning number {i} ends here\n" for i in range(99))
    (sources / "pool_api.cc").write_text(warnings + "int broken = not_declared_anywhere;\n")
    with pytest.raises(BuildFailed, match=r"lines before\)") as failure:
        obtained(sources)
    message = str(failure.value)
    for words in ("not_declared_anywhere", "-std=c++17 -O3", "pool_api.cc -o", 'engine="torch"', "fdt-pipeline doctor"):
        assert words in message
    assert len(message.splitlines()) < SHOWN_LINES + 10


@pytest.mark.parametrize("missing", HEADER_WHEELS)
def test_a_missing_header_is_named_by_its_wheel(monkeypatch, missing, sources):
    found = recipe.wheel_file
    monkeypatch.setattr(recipe, "wheel_file", lambda wheel, name: None if wheel == missing else found(wheel, name))
    with pytest.raises(NativeUnavailable, match=f'no {HEADER_WHEELS[missing]}.*pip install "{missing}>=13.0,<14"; '):
        obtain(operator_recipe(sources))


def test_the_headers_come_from_the_environment_and_the_compiler_alone():
    command = next(words for words in operator_recipe().commands() if words[-1] == "operators.o")
    output = subprocess.run([*command[:-2], "-M"], capture_output=True, check=True).stdout
    used = {Path(word).resolve() for word in output.decode().replace("\\\n", " ").split()[1:]}
    asking = [command[0], "-E", "-v", "-x", "c++", "/dev/null"]
    searched = subprocess.run(asking, capture_output=True, check=True).stderr
    system = [line[1:] for line in searched.decode().splitlines() if line.startswith(" /")]
    ours = [str(recipe.CSRC), *(word for word in command[1:] if word.startswith("/"))]
    allowed = [Path(folder).resolve() for folder in [*ours, *system] if Path(folder).is_dir()]
    assert len(used) > 100
    assert [path for path in used if not any(path.is_relative_to(folder) for folder in allowed)] == []
    assert not [folder for folder in ours if "/usr/local/cuda" in folder]


@pytest.mark.compile
def test_our_sources_compile_without_a_warning():
    said = {}
    for command in operator_recipe().commands()[:-1]:
        checked = [*command[:-2], "-fsyntax-only"]
        said[command[-1]] = subprocess.run(checked, capture_output=True, text=True, check=False).stderr
    assert set(said.values()) == {""}, said
