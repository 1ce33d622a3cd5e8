"""What cannot be is refused when a loader or a pipeline is made, with what was expected; both use one `Options`."""

import numpy as np
import pytest
import torch

from fdt_pipeline import FDT, Augment, CutMix, FDTLoader, MixUp, OneOf, RandomResizedCrop, fdt_pipeline
from fdt_pipeline.loader.options import checked_device
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.numbered import numbered_images

RESIDENT, STREAMING = {"mode": "resident"}, {"mode": "streaming"}
SET, RING, BATCH = (MixUp(0.2, partners=partners) for partners in ("set", "ring", "batch"))
IN_MEMORY = (
    r'partners="{}" needs streaming, but the set is in memory: pass mode="streaming" \(mode="auto" goes by the mix of'
)
STREAMED = r'partners="set" needs the set in memory, but it is streamed: pass mode="resident".* \(mode="auto" goes by'
REFUSED = [
    ({"batch_size": 0}, "batch_size must be 1 or more"),
    ({"num_threads": 0}, "num_threads must be 1 or more"),
    ({"prefetch": -1}, "prefetch must be 0 or more"),
    ({"ring": 0}, "ring must be 1 or more"),
    ({"ring": 7, "mode": "streaming"}, "ring=7 is smaller than a batch of 8: pass 8 or more"),
    ({"decode": "gpu"}, 'decode="gpu" needs device="cuda"'),
    ({"decode": "tpu"}, "decode must be one of 'cpu', 'gpu', got 'tpu'"),
    ({"ring": 10, **RESIDENT}, "ring is for streaming"),
    ({"mode": "fast"}, "mode must be one of 'auto', 'resident', 'streaming', got 'fast'"),
    ({"engine": "numpy"}, "engine must be one of"),
    ({"last_batch": "full"}, "last_batch must be one of"),
    ({"batch_size": 500, "last_batch": "drop"}, "leaves no batch: 230 samples in batches of 500"),
    ({"on_bad": "skip", **STREAMING}, "on_bad must be one of"),
    ({"on_bad": "substitute", **RESIDENT}, "on_bad is for streaming"),
    ({"seed": -1}, "seed must be 0 or more"),
    ({"seed": 2**64}, "seed must be in"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"train": False, "mix": FDT()}, "leave mix out"),
    ({"train": False, "augment": Augment()}, "leave augment out"),
    ({"mix": FDT(max_images=8)}, "max_images 8 is over the number of classes, 7"),
    ({"mix": "harmonic"}, "mix must be an FDT, MixUp, CutMix or OneOf, a function of the epoch .*, got 'harmonic'"),
    ({"mix": MixUp}, "mix must be an FDT, MixUp, CutMix or OneOf, .*, got the class MixUp"),
    ({"mix": {MixUp(0.2): 1.0}}, r"mix must be an FDT, MixUp, CutMix or OneOf, .*, got \{MixUp"),
    ({"mix": lambda epoch: CutMix}, r"mix\(0\) must give an FDT, MixUp, CutMix, OneOf or None, got the class CutMix"),
    ({"mix": lambda epoch: OneOf({})}, r"mix\(0\) failed \(ValueError: OneOf: expected 1 to 8 mixings"),
    (
        {"mix": lambda: MixUp(1)},
        r"mix\(0\) failed \(TypeError: .*\): a mix is an FDT, MixUp, CutMix, OneOf, or a function",
    ),
    ({"mix": torch.nn.Identity()}, r"a function of the epoch .*, or None, got the torch module Identity\(\)"),
    ({"mix": RING, **RESIDENT}, IN_MEMORY.format("ring")),
    ({"mix": OneOf({BATCH: 1.0}), **RESIDENT}, IN_MEMORY.format("batch")),
    ({"mix": lambda epoch: BATCH, **RESIDENT}, IN_MEMORY.format("batch")),
    ({"mix": SET, **STREAMING}, STREAMED),
    ({"mix": lambda epoch: SET, **STREAMING}, STREAMED),
    ({"mix": SET, "augment": RandomResizedCrop(4)}, STREAMED),
    ({"mix": SET, "ring": 10}, "ring is for streaming"),
    ({"mix": BATCH, "ring": 10}, 'partners="batch" keeps no ring: leave ring=10 out, or pass partners="ring"'),
    ({"mix": BATCH, "batch_size": 1}, "mixed within their batch, but a batch has one: pass batch_size=2 or more"),
    ({"mix": BATCH, "batch_size": 229}, 'but the last batch of a rank has one: pass last_batch="drop" or "fill"'),
    ({"mix": BATCH, "batch_size": 57, "rank": 1, "world_size": 2}, "but the last batch of a rank has one"),
    ({"augment": 4}, "augment must be an Augment, a RandomResizedCrop, a ResizeCrop or None, got 4"),
    ({"dtype": torch.float64}, "cast other types after"),
    ({"channels": 0}, "channels must be 1 or more"),
    ({"channels": 1}, "channels=1, but the images have 3: only gray ones can be repeated"),
    ({"size": 7, **STREAMING}, r"size must be \(height, width\), got 7"),
    ({"size": (3.5, 3), **STREAMING}, "height of size must be a whole number"),
    ({"size": (4, 4), **RESIDENT}, "size resizes while streaming"),
    ({"mean": float("nan")}, "mean must be a finite number"),
    ({"mean": (1.0, 2.0)}, "mean must be a finite number or 3 of them"),
    ({"std": 0}, "std must be above 0"),
    (
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        r"multiply by 255: mean=\(123.675, 116.28, 103.53\), std=\(58.395, 57.12, 57.375\)",
    ),
    ({"mean": np.float32(0.5), "std": 0.5}, "multiply by 255: mean=127.5, std=127.5$"),
    ({"std": (0.229, 0.224, 1)}, r"multiply by 255: std=\(58.395, 57.12, 255\)$"),
    ({"device": "tpu"}, 'device must be "cpu" or "cuda", got \'tpu\''),
    ({"device": "cuda:99"}, "device is 'cuda:99', but torch sees"),
]


@pytest.mark.parametrize(("options", "match"), REFUSED, ids=[match for _, match in REFUSED])
def test_a_loader_refuses_what_cannot_be(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, **{"batch_size": 8, **options})


@pytest.mark.dali
@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[({name: value}, f"{name} must be") for name, value in (("batch_size", 0), ("mode", "lazy"), ("mix", "none"))],
        ({"mix": lambda epoch: FDT()}, "a mix that is a function of the epoch is for FDTLoader: pass one mix"),
        ({"mix": RING}, 'partners="ring" is for FDTLoader, as DALI mixes within its batch: pass partners="batch" here'),
        ({"mix": SET, **STREAMING}, STREAMED),
        ({"mix": BATCH, **RESIDENT}, IN_MEMORY.format("batch")),
        ({"mix": MixUp(0.2), "batch_size": 1, **STREAMING}, "mixed within their batch, but a batch has one"),
        ({"num_threads": 0}, "num_threads must be 1 or more, got 0"),
        ({"plan_seed": -1}, "plan_seed must be 0 or more"),
        ({"size": (8, 8), **RESIDENT}, "size resizes while streaming"),
        ({"rank": 0, "world_size": 114, "batch_size": 1}, 'last_batch="partial" leaves 2 of 230 outputs for 114 ranks'),
        ({"device": "cuda"}, "device must be one of 'cpu', 'gpu', got 'cuda'"),
        ({"device": "gpu"}, 'device="gpu" needs the number of one: pass device_id=0, got device_id=None'),
        *[({"epoch": epoch}, rf"epoch must be in \[0, 2\*\*32\), got {epoch}") for epoch in (-1, 2**32, 1.5)],
        ({"dtype": torch.bfloat16}, "DALI has no bfloat16"),
    ],
)
def test_a_pipeline_refuses_what_a_loader_does_and_what_only_it_has(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        fdt_pipeline(numbered_shards, **{"batch_size": 46, "num_threads": 1, "device_id": None, **options})


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 255), (127.5, 1), ((0.5, 9, 9), 256), ((0, 1, 1), 1)])
def test_normalizations_of_grey_levels_are_taken(numbered_shards, mean, std):
    assert FDTLoader(numbered_shards, 8, mean=mean, std=std).std == tuple(np.broadcast_to(std, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "cuda"}, 'torch sees no GPU here: pass device="cpu"'),
        ({"pin_memory": True}, "pin_memory=True needs a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, 8, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pin_memory": True}, "pin_memory is for tensors on the host, but device is 'cuda:0'"),
        ({"engine": "torch"}, "engine=\"torch\" is for the CPU, but device is 'cuda:0': leave engine out"),
    ],
)
def test_what_is_for_the_cpu_is_refused_on_a_gpu(numbered_shards, monkeypatch, options, match):
    """Torch says that there is one."""
    for name, value in (("is_available", True), ("current_device", 0), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, 8, device="cuda", **options)


@pytest.mark.parametrize(
    ("local_rank", "current", "count", "expected"),
    [
        ("2", 0, 4, 2),  # torchrun, and nobody has called set_device
        ("2", 1, 4, 1),  # somebody has
        ("2", 0, 1, 0),  # the launcher shows each rank a GPU of its own
        ("0", 0, 4, 0),
        (None, 0, 4, 0),
        (None, 3, 4, 3),
        ("x", 0, 4, 0),
    ],
)
def test_a_bare_cuda_is_the_local_ranks_gpu_where_nobody_has_set_one(monkeypatch, local_rank, current, count, expected):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    for name, value in (("is_available", True), ("current_device", current), ("device_count", count)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert checked_device("cuda") == torch.device("cuda", expected)
    assert checked_device("cuda:0") == torch.device("cuda", 0), "what is given stands"


def test_one_class_cannot_be_mixed_but_can_be_read(tmp_path):
    write_shards(ArraySource(numbered_images(9), np.zeros(9, np.int64)), tmp_path / "one")
    with pytest.raises(ValueError, match="needs 2 or more of them, got 1"):
        FDTLoader(tmp_path / "one", 3)
    assert len(list(FDTLoader(tmp_path / "one", 3, mix=None))) == 3


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_set_with_images_of_one_class_alone_is_not_mixed_by_class(tmp_path, mode):
    source = ArraySource(numbered_images(9), np.ones(9, np.int64), ["a", "b", "c"], split="test")
    write_shards(source, tmp_path / "one")
    for mix in (FDT(), OneOf({MixUp(0.2): 0.5, MixUp(0.2, unique_classes=True): 0.5})):
        with pytest.raises(ValueError, match=r"only one of the 3 classes has images, so that .* would mix none"):
            FDTLoader(tmp_path / "one", 3, mode=mode, mix=mix)
    for mix in (None, MixUp(0.2), FDT(unique_classes=False, max_images=2)):
        assert len(list(FDTLoader(tmp_path / "one", 3, mode=mode, mix=mix))) == 3
