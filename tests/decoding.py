"""Images as the decoding pipeline makes them."""

from contextlib import closing

import numpy as np

from fdt_pipeline.loader.graphs import decoding_pipeline
from fdt_pipeline.loader.preprocessing import conditionals
from fdt_pipeline.loader.running import DaliOptions, run_pipeline


def decoded(images, decoding, sizes=None, *, seed=0, epoch=0, samples=None, threads=1):
    """Files or arrays -> u8[n h w c], all of them in one DALI batch; samples: their positions in the set."""
    samples = np.arange(len(images)) if samples is None else np.asarray(samples)
    fed = {"images": images, **decoding.inputs(seed, epoch, samples, None if sizes is None else np.asarray(sizes))}
    options = DaliOptions(threads, ahead=0).arguments(len(images)) | conditionals(decoding.preprocess)
    pipeline = decoding_pipeline(decoding, **options)
    with closing(run_pipeline(pipeline, iter([fed]), lambda fed: fed)) as made:
        for _, outputs in made:
            return outputs.tensors[0].numpy().copy()
