"""Results of a bench with given numbers, for the tests of what is made of them."""

from tools.bench.results import summarize


def turn(rate):
    return {
        "rate": rate, "images": 1000, "taken": 2000, "batches": 10, "seconds": 1000 / rate, "waited": 250 / rate,
        "p50": 0.010, "p95": 0.020, "p99": 0.030, "epoch": 1, "cpu": 0.1, "memory": 300e6, "peak": 400e6,
        "from_storage": 0, "by_read": 4000, "gpu": 0, "rests": True,
    }  # fmt: skip


def start():
    used = {"cpu": 1.0, "memory": 250e6, "peak": 450e6, "from_storage": 7, "by_read": 1, "gpu": 0, "rests": True}
    epoch = {"images": 500, "seconds": 2.0, "whole": False}
    return {"set_up_seconds": 1.5, "first_batch_seconds": 0.5, "first_epoch": epoch, **used}


def contender(name, rates, mixing="none", images_per_output=1.0, **others):
    return {
        "name": name, "mixing": mixing, "note": "", "images_per_output": images_per_output, "status": "measured",
        "reason": "", "check": {}, "start": start(), "turns": list(map(turn, rates)), **others,
    }  # fmt: skip


def results(*contenders, training=(), sweeps=None, **others):
    found = {
        "format": 1,
        "command": ["python", "-m", "tools", "bench", "shards/train", "--json", "bench.json"],
        "machine": {"device": "cpu", "cpu": "A Processor", "cores": 2, "memory_gib": 8.0},
        "versions": {"torch": "2.9", "timm": None, "commit": "abc"},
        "data": {
            "kind": "cifar10", "split": "train", "samples": 50000, "classes": 10, "shape": [32, 32, 3],
            "encoding": "raw", "megabytes": 190.0, "manifest_sha256": "00",
        },
        "options": {"batch_size": 256, "workers": 2, "repeats": 6, "seconds": 2.0, "model": None, "classes": []},
        "contenders": list(contenders),
        "training": list(training),
        "sweeps": sweeps or {"classes": {}, "batch_sizes": {}},
        "noise": {"arithmetic": {"seconds": [0.1, 0.102], "spread": 0.02}},
        **others,
    }  # fmt: skip
    for part in (found["contenders"], found["training"], *found["sweeps"]["classes"].values()):
        summarize(part)
    return found


def steady(rate):
    return [rate * share for share in (0.98, 0.99, 1.0, 1.0, 1.01, 1.02)]
