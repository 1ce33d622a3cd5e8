"""From sources to a library in the cache: once, whole, and never half. All but the last test build a small stand-in."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fdt_pipeline.native import NativeUnavailable, build, cache, processor, toolchain
from fdt_pipeline.native.build import SHOWN_LINES, BuildFailed, obtain
from fdt_pipeline.native.recipe import core_recipe, operator_recipe
from fdt_pipeline.native.toolchain import HEADER_WHEELS, Headers, find_compiler, find_headers
from tests.native_stand_in import (
    DALI_OPERATORS,
    PATIENCE,
    LoggingCompiler,
    at_once,
    building,
    read_only,
    start,
    write_sources,
)

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Of this test alone; so are the folder for temporary files and the compiler."""
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("FDT_PIPELINE_NATIVE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path / "sources")


def answer_of(library):
    return ctypes.CDLL(str(library)).fdt_answer()


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_running(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_nothing_is_left(cache_folder):
    """But the lock's file."""
    assert {path.name for path in cache_folder.iterdir()} <= {cache.LOCK}


# One build


def test_a_library_is_built_once_and_then_found(sources, cache_folder):
    first, second = obtain(core_recipe(csrc=sources)), obtain(core_recipe(csrc=sources))
    assert (answer_of(first.path), first.path, first.path.parent) == (42, second.path, cache_folder)
    assert first.seconds > 0 == second.seconds


@pytest.mark.process
def test_eight_processes_at_once_build_once(tmp_path, sources, cache_folder):
    compiler = LoggingCompiler(tmp_path / "compiler", first="sleep 0.2")
    outputs = [output.strip() for output, _ in at_once(8, tmp_path / "ready", building(sources), CXX=compiler.path)]
    assert set(outputs) == {str(next(cache_folder.glob("*.so")))}
    assert compiler.num_links() == 1
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".lock", ".so"]


def test_threads_build_once(tmp_path, sources, monkeypatch):
    compiler = LoggingCompiler(tmp_path / "compiler", first="sleep 0.1")
    monkeypatch.setenv("CXX", str(compiler.path))
    threads = [threading.Thread(target=obtain, args=[core_recipe(csrc=sources)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiler.num_links() == 1


@pytest.mark.process
def test_those_who_waited_for_a_build_that_failed_do_not_repeat_it(tmp_path, sources):
    (sources / "pool_api.cc").write_text("#error the sky is falling\n")
    compiler = LoggingCompiler(tmp_path / "compiler", first="sleep 1")
    errors = [error for _, error in at_once(3, tmp_path / "ready", building(sources), CXX=compiler.path)]
    assert all("the sky is falling" in error for error in errors)
    assert sum("pool_api.cc" in " ".join(arguments) for _, arguments in compiler.runs()) == 1


def test_a_build_that_failed_is_tried_again_by_the_next_who_asks(tmp_path, sources):
    recipe = core_recipe(csrc=sources)
    whole = (sources / "pool_api.cc").read_text()
    (sources / "pool_api.cc").write_text("#error the disk was full\n")
    with pytest.raises(BuildFailed):
        obtain(recipe)
    (sources / "pool_api.cc").write_text(whole)
    assert answer_of(obtain(recipe).path) == 42


# What is cut off in the middle


@pytest.fixture
def endless_build(tmp_path, sources, cache_folder):
    """(a process whose compilers never end, the compiler's diary), once compilers run."""
    compiler = LoggingCompiler(tmp_path / "compiler", first="exec sleep 60")
    process = start(building(sources), CXX=compiler.path)
    wait_until(lambda: len(compiler.runs()) >= min(2, len(os.sched_getaffinity(0))))
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
    assert cache.find(core_recipe(csrc=sources)) is None
    assert answer_of(obtain(core_recipe(csrc=sources)).path) == 42
    assert not list(cache_folder.glob("building-*"))


@pytest.mark.process
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to Python", "to its compilers too, as a terminal does"])
def test_ctrl_c_ends_the_compilers_and_leaves_no_lock(endless_build, sources, cache_folder, send):
    process, compiler = endless_build
    send(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=300)[1]
    assert not [process_id for process_id, _ in compiler.runs() if is_running(process_id)]
    assert_nothing_is_left(cache_folder)
    assert answer_of(obtain(core_recipe(csrc=sources)).path) == 42


def test_a_compiler_that_ctrl_c_has_reached_first_is_no_failed_build(tmp_path, sources, cache_folder, monkeypatch):
    monkeypatch.setenv("CXX", str(LoggingCompiler(tmp_path / "compiler", first="kill -INT $$").path))
    with pytest.raises(KeyboardInterrupt):
        obtain(core_recipe(csrc=sources))
    assert_nothing_is_left(cache_folder)


def test_sources_that_change_while_they_are_compiled_are_not_kept(tmp_path, sources, cache_folder, monkeypatch):
    edit = f"echo >> {sources}/answer.h"
    monkeypatch.setenv("CXX", str(LoggingCompiler(tmp_path / "compiler", first=edit).path))
    with pytest.raises(NativeUnavailable, match="were changed while they were compiled"):
        obtain(core_recipe(csrc=sources))
    assert_nothing_is_left(cache_folder)


@pytest.mark.compile
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:500] + b"?" + data[501:], lambda _: b""]
)
def test_a_damaged_library_is_noticed_and_rebuilt(sources, damage):
    library = obtain(core_recipe(csrc=sources)).path
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert cache.find(core_recipe(csrc=sources)) is None
    assert obtain(core_recipe(csrc=sources)).path.read_bytes() == whole


# Where it may not write


def test_a_library_in_a_read_only_cache_is_used_without_a_lock_or_a_write(sources, cache_folder):
    library = obtain(core_recipe(csrc=sources)).path
    process = start(read_only(cache_folder, but_locks=False) + building(sources))
    assert process.communicate(timeout=PATIENCE) == (f"{library}\n", "")


@pytest.mark.parametrize("home", [False, True], ids=["the cache", "the home folder"])
def test_a_read_only_cache_without_the_library_is_replaced_by_a_temporary_folder(tmp_path, sources, cache_folder, home):
    cache_folder.mkdir()
    read_only_folder, where = cache_folder, {}
    if home:
        read_only_folder = tmp_path / "home"
        read_only_folder.mkdir()
        cache_folder = read_only_folder / ".cache" / "fdt_pipeline"
        where = {"HOME": read_only_folder, "XDG_CACHE_HOME": "", "FDT_PIPELINE_CACHE": ""}
    output, errors = start(read_only(read_only_folder) + building(sources), **where).communicate(timeout=PATIENCE)
    assert Path(output.strip()).parent == cache.temporary_folder()
    assert f"the cache {cache_folder} cannot be written to (Read-only file system)" in errors


def test_a_library_in_the_cache_is_used_without_a_compiler(sources, monkeypatch):
    library = obtain(core_recipe(csrc=sources)).path
    monkeypatch.setenv("PATH", "")
    assert obtain(core_recipe(csrc=sources)).path == library


@pytest.fixture
def blocked_cache(tmp_path, monkeypatch):
    """A cache folder that nobody can make, not even root, as there is a file above it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


def test_a_cache_that_cannot_be_written_to_is_replaced_by_a_temporary_folder_that_is_named(sources, blocked_cache):
    with pytest.warns(RuntimeWarning, match=f"{blocked_cache} cannot be written to .*set FDT_PIPELINE_CACHE") as warned:
        library = obtain(core_recipe(csrc=sources)).path
    assert (library.parent, len(warned)) == (cache.temporary_folder(), 1)
    assert (cache.temporary_folder().stat().st_mode & 0o777, answer_of(library)) == (0o700, 42)
    assert obtain(core_recipe(csrc=sources)).path == library  # in silence now


def test_a_lock_of_another_user_is_a_cache_that_cannot_be_written_to(sources, cache_folder, monkeypatch):
    cache_folder.mkdir()
    (cache_folder / "build.lock").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache_folder / "build.lock")
    with pytest.warns(RuntimeWarning, match="its lock belongs to somebody else"):
        assert obtain(core_recipe(csrc=sources)).path.parent == cache.temporary_folder()


def test_a_full_disk_is_an_error_that_says_what_to_do(sources, cache_folder, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build, "compile_library", fill)
    match = f"could not be built in {cache_folder} .No space left on device.: free space, or set FDT_PIPELINE_CACHE to"
    with pytest.raises(NativeUnavailable, match=match):
        obtain(core_recipe(csrc=sources))
    assert_nothing_is_left(cache_folder)


@pytest.mark.parametrize("trap", ["a link", "open to all", "a file"])
def test_no_code_is_loaded_from_a_temporary_folder_that_is_not_ours_alone(tmp_path, sources, blocked_cache, trap):
    folder = cache.temporary_folder()
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    with pytest.raises(NativeUnavailable, match="set FDT_PIPELINE_CACHE"):
        obtain(core_recipe(csrc=sources))


def test_the_cache_is_where_the_environment_says(monkeypatch):
    assert cache.cache_folder() == Path(os.environ["FDT_PIPELINE_CACHE"])
    monkeypatch.delenv("FDT_PIPELINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_folder() == Path("/somewhere/fdt_pipeline")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard says to ignore")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.cache_folder() == Path("/home/somebody/.cache/fdt_pipeline")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert cache.cache_folder() == Path("/.cache/fdt_pipeline")


# The key


def change_file(name, text):
    return lambda sources, _: (sources / name).write_text(text)


def patch(target, value):
    return lambda _, monkeypatch: monkeypatch.setattr(target, value)


def change_compiler(sources, monkeypatch):
    monkeypatch.setenv("CXX", str(LoggingCompiler(sources.parent / "other", version="99").path))


INGREDIENTS = {
    "a source": change_file("pool_api.cc", "int other;\n"),
    "a header of ours": change_file("answer.h", "constexpr int kAnswer = 43;\n"),
    "the GPU's source": change_file("superpose.cu", "__global__ void f() {}\n"),
    "one more source": change_file("more.cc", "int more;\n"),
    "DALI's version": patch("fdt_pipeline.dali.version", lambda: "2.5.0"),
    "DALI's wheel": patch("fdt_pipeline.dali.installed_wheels", lambda: ["nvidia-dali-cuda120"]),
    "the compiler": change_compiler,
    "CUDA's headers": patch("fdt_pipeline.native.toolchain.find_headers", lambda: Headers((), "13.9")),
    "the C library": patch("platform.libc_ver", lambda: ("glibc", "2.99")),
    "the machine": patch("platform.machine", lambda: "aarch64"),
    "flags": patch("fdt_pipeline.native.recipe.COMMON_FLAGS", ("-O2",)),
    "DALI's flags": patch("nvidia.dali.sysconfig.get_compile_flags", lambda: ["-I/x", "-D_GLIBCXX_USE_CXX11_ABI=7"]),
}


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_the_key_changes_with(ingredient, sources, monkeypatch):
    before = operator_recipe(sources).key
    INGREDIENTS[ingredient](sources, monkeypatch)
    assert operator_recipe(sources).key != before


def test_the_key_does_not_change_with_the_place(tmp_path, sources):
    shutil.copytree(sources, tmp_path / "elsewhere")
    assert operator_recipe(sources).key == operator_recipe(tmp_path / "elsewhere").key


def test_extra_flags_and_sources_are_built_and_are_in_the_key(tmp_path, sources):
    extra = tmp_path / "extra.cc"
    extra.write_text('extern "C" __attribute__((visibility("default"))) int fdt_extra() { return 7; }\n')
    plain, more = core_recipe(csrc=sources), core_recipe([extra], ("-fsanitize=undefined", "-g"), sources)
    assert plain.key != more.key
    library = obtain(more).path
    assert b"__ubsan" in library.read_bytes()
    assert b"fdt_extra" in library.read_bytes()


def test_the_kernel_is_compiled_for_every_level_and_the_rest_for_the_lowest(sources, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    flags = {unit.name: set(unit.flags) for unit in core_recipe(csrc=sources).units}
    assert {"-march=x86-64-v2", "-DFDT_ISA=v2"} <= flags["kernel.v2"]
    assert {"-march=x86-64-v3", "-DFDT_ISA=v3"} <= flags["kernel.v3"]
    assert {"-march=x86-64-v4", "-mprefer-vector-width=512", "-DFDT_ISA=v4"} <= flags["kernel.v4"]
    assert "-march=x86-64-v2" in flags["pool_api"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    flags = {unit.name: " ".join(unit.flags) for unit in core_recipe(csrc=sources).units}
    assert "-DFDT_ISA=generic" in flags["kernel.generic"]
    assert "-march" not in "".join(flags.values())


def test_the_levels_that_a_processor_has_whole_are_found():
    v3 = {"sse4_2", "ssse3", "popcnt", "avx2", "fma", "bmi2"}
    assert processor.found_levels(frozenset(v3)) == ["v2", "v3"]
    assert processor.found_levels(frozenset(v3 - {"fma"} | {"avx512f"})) == ["v2"]
    assert processor.found_levels(frozenset()) == []


# What is missing, and what fails


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("PATH", "", r"apt-get install g\+\+.*engine=\"torch\""),
        ("CXX", "g++-nowhere -m64", r"CXX=g\+\+-nowhere -m64 is not a program"),
        ("CXX", "too old", r"needs g\+\+ 11 or clang 12, or newer"),
    ],
)
def test_what_is_wrong_with_the_compiler_is_said_with_what_to_install(
    tmp_path, sources, monkeypatch, variable, value, match
):
    if value == "too old":
        value = str(LoggingCompiler(tmp_path / "old", version="9").path)
    monkeypatch.setenv(variable, value)
    with pytest.raises(NativeUnavailable, match=match):
        obtain(core_recipe(csrc=sources))


def test_options_in_cxx_are_passed_on(sources, monkeypatch):
    monkeypatch.setenv("CXX", "g++ -DkAnswer=kOther")
    assert find_compiler().command[1:] == ("-DkAnswer=kOther",)
    assert answer_of(obtain(core_recipe(csrc=sources)).path) == 42


def test_a_compilation_that_fails_shows_the_compilers_words_the_command_and_the_way_out(sources):
    (sources / "pool_api.cc").write_text("int broken = not_declared_anywhere;\n")
    with pytest.raises(BuildFailed) as failure:
        obtain(core_recipe(csrc=sources))
    message = str(failure.value)
    assert "not_declared_anywhere" in message
    assert "-std=c++17 -O3" in message
    assert "pool_api.cc -o" in message
    assert 'engine="torch"' in message
    assert "fdt-pipeline doctor" in message


def test_the_last_lines_of_a_long_complaint_are_shown(sources):
    warnings = "".join(f"#warning number {i} ends here\n" for i in range(99))
    (sources / "pool_api.cc").write_text(warnings + "#error at last\n")
    with pytest.raises(BuildFailed, match=r"lines before\)") as failure:
        obtain(core_recipe(csrc=sources))
    assert "at last" in str(failure.value)
    assert len(str(failure.value).splitlines()) < SHOWN_LINES + 10


def test_what_is_defined_nowhere_is_an_error_of_the_build(sources):
    (sources / "pool_api.cc").write_text("void nowhere(); void *f() { return (void *)nowhere; }\n")
    with pytest.raises(BuildFailed, match="undefined reference to `nowhere"):
        obtain(operator_recipe(sources))


# CUDA's headers


def write_headers(root):
    for wheel in HEADER_WHEELS:
        header = root / wheel.folders[0] / wheel.header
        header.parent.mkdir(parents=True, exist_ok=True)
        header.touch()
    (root / "cu13/include/cuda_runtime_api.h").write_text("#define CUDART_VERSION  13010\n")


def test_headers_may_be_split_over_two_places(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "nvidia_folders", lambda: [tmp_path / "user", tmp_path / "system"])
    write_headers(tmp_path / "system")
    (tmp_path / "user/cu13/include/crt").mkdir(parents=True)
    (tmp_path / "system/cu13/include/crt/host_config.h").rename(tmp_path / "user/cu13/include/crt/host_config.h")
    folders = tmp_path / "system/cu13/include", tmp_path / "user/cu13/include"
    assert find_headers() == Headers(folders, "13.1")


@pytest.mark.parametrize("wheel", HEADER_WHEELS, ids=lambda wheel: wheel.name)
def test_a_missing_header_is_named_by_its_wheel(tmp_path, monkeypatch, wheel, sources):
    monkeypatch.setattr(toolchain, "nvidia_folders", lambda: [tmp_path])
    write_headers(tmp_path)
    (tmp_path / wheel.folders[0] / wheel.header).unlink()
    with pytest.raises(NativeUnavailable, match=f'no {wheel.header}.*pip install "{wheel.name}>=13.0,<14"; '):
        obtain(operator_recipe(sources))


def test_dalis_headers_need_nothing_outside_of_the_environment(tmp_path):
    sources = write_sources(tmp_path / "with_dali", operators=DALI_OPERATORS)
    recipe = operator_recipe(sources)
    assert isinstance(recipe.toolchain, toolchain.Toolchain), recipe.toolchain
    unit = next(unit for unit in recipe.units if unit.name == "operators")
    compiler = recipe.toolchain.compiler.command
    output = subprocess.run(
        [*compiler, *unit.flags, *unit.paths, "-M", str(unit.source)], capture_output=True, check=True
    )
    used = {Path(word).resolve() for word in output.stdout.decode().replace("\\\n", " ").split()[1:]}
    searched = subprocess.run([*compiler, "-E", "-v", "-x", "c++", "/dev/null"], capture_output=True, check=True).stderr
    system = [line[1:] for line in searched.decode().splitlines() if line.startswith(" /")]
    ours = [str(sources), *(path for path in unit.paths if path.startswith("/"))]
    allowed = [Path(folder).resolve() for folder in [*ours, *system] if Path(folder).is_dir()]
    assert len(used) > 100
    assert [path for path in used if not any(path.is_relative_to(folder) for folder in allowed)] == []
    assert not [folder for folder in ours if "/usr/local/cuda" in folder]


# The true sources


@pytest.mark.compile
def test_our_sources_compile_without_a_warning():
    recipe = operator_recipe()
    compiler, said = recipe.toolchain.compiler.command, {}
    for unit in recipe.units:
        command = [*compiler, *unit.flags, *unit.paths, "-fsyntax-only", str(unit.source)]
        said[unit.name] = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert set(said.values()) == {""}, said
