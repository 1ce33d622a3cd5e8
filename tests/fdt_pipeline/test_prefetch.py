"""Reading ahead on a thread of its own."""

import subprocess
import sys
import threading

from fdt_pipeline.loader.prefetch import Prefetcher

COLLECTED_ON_ITS_OWN_THREAD = """
import faulthandler, gc, threading, weakref
faulthandler.dump_traceback_later(20, exit=True)
from fdt_pipeline.loader.prefetch import Prefetcher

class Owner: pass

begin = threading.Event()
def items():
    begin.wait()
    gc.collect()  # as any allocation may, on this thread
    yield 1

owner = Owner()
owner.itself = owner
ahead = Prefetcher(items(), 1)
weakref.finalize(owner, ahead.close)
gc.disable()
del owner
begin.set()
[thread] = (thread for thread in threading.enumerate() if thread.name.startswith("fdt_pipeline"))
thread.join()
"""


def test_its_owner_may_be_collected_on_the_very_thread_that_reads():
    code = [sys.executable, "-c", COLLECTED_ON_ITS_OWN_THREAD]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_closing_ends_thread_and_generator_even_if_nobody_takes_what_was_made():
    ended = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            ended.set()

    before = threading.active_count()
    ahead = Prefetcher(items(), 2)
    next(ahead)
    ahead.close()
    assert ended.is_set()
    assert threading.active_count() == before
