"""A user's function of DALI nodes is tried before the first batch, and refused by name."""

import functools

import pytest
from nvidia.dali.auto_aug.rand_augment import rand_augment

from fdt_pipeline.loader.decoding import preprocess_name, takes_random
from fdt_pipeline.loader.preprocessing import check_preprocess, fn, types

pytestmark = pytest.mark.dali


def twisted(images, random):
    return fn.color_twist(images, brightness=0.6 + 0.8 * random[0], hue=20 * random[1] - 10)


def flipped(images):
    return fn.flip(images, horizontal=fn.random.coin_flip())


def turned_where_random(images, random):
    if random[0] > 0.5:
        images = fn.flip(images, vertical=1)
    return images


@pytest.mark.parametrize("preprocess", [turned_where_random, functools.partial(rand_augment, n=2, m=9)])
def test_functions_may_have_conditions_of_nodes(preprocess):
    check_preprocess(preprocess, (8, 9, 3))


@pytest.mark.parametrize(
    "preprocess", [twisted, flipped, lambda *images: images[0], functools.partial(fn.color_twist, hue=9.0)]
)
def test_functions_that_keep_shape_and_type_are_taken(preprocess):
    check_preprocess(preprocess, (8, 9, 3))


@pytest.mark.parametrize(
    ("preprocess", "match"),
    [
        (lambda images: fn.cast(images, dtype=types.FLOAT), "<lambda> must give uint8, as it gets, but gives FLOAT"),
        (lambda images: fn.resize(images, size=(5, 6)), "of the shape that it gets, 8 x 9 x 3, but gives 5 x 6 x 3"),
        (lambda images: fn.transpose(images, perm=[2, 0, 1]), "8 x 9 x 3, but gives 3 x 8 x 9"),
        (lambda images: fn.resize(images, resize_x=fn.random.uniform(range=(9, 50))), "must give images of the shape"),
        (lambda images: fn.crop(images, crop=(50, 50)), "fails on images of 8 x 9 x 3: .*out of bounds"),
        (lambda images: (images, images), "it must give one DALI node, the images, but gives"),
        (lambda images: None, "it must give one DALI node, the images, but gives None"),
        (lambda images: fn.random.uniform(range=(0, 1)), "does not depend on images"),
        (lambda images, random: images, "does not depend on random: take no argument that is not used"),
        (lambda images, random: fn.color_twist(images, hue=random[16]), "fails on images of 8 x 9 x 3: .*[Ii]ndex"),
        (lambda images: fn.no_such_operator(images, 1), "fails on images .*no_such_operator"),
        (lambda: None, "must be a function of DALI nodes, .images. or .images, random., got .*<lambda>"),
        (lambda a, b, c: a, "must be a function of DALI nodes"),
        (lambda images, *, amount: images, "must be a function of DALI nodes"),
        (0.5, "must be a function of DALI nodes, got 0.5"),
    ],
)
def test_a_function_that_does_not_is_refused_and_the_reason_said_in_one_line(preprocess, match):
    with pytest.raises(ValueError, match=f"^preprocess.*{match}") as raised:
        check_preprocess(preprocess, (8, 9, 3))
    assert "\n" not in str(raised.value)


def test_random_numbers_go_to_what_takes_a_second_argument():
    assert takes_random(twisted)
    assert not takes_random(flipped)
    assert not takes_random(lambda images, amount=0.5: images)
    assert takes_random(functools.partial(lambda amount, images, random: images, 3))


def test_functions_are_named_by_module_and_name():
    assert preprocess_name(twisted) == f"{__name__}.twisted"
    assert preprocess_name(functools.partial(twisted)) == f"{__name__}.twisted"
