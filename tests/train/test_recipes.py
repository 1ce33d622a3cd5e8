import json
from dataclasses import replace

import pytest

from fdt_pipeline import FDT, Augment, CutMix, MixUp, OneOf, Power
from train.recipes import COLUMNS, CONTROLS, MIXINGS, RECIPES, Recipe, make_recipe


@pytest.mark.parametrize("name", [*RECIPES, *(f"resnet34_{control}" for control in CONTROLS)])
def test_every_recipe_is_named_as_it_is_asked_for_is_unlike_any_other_and_survives_json(name):
    recipe = make_recipe(name)
    assert recipe.name == name
    recipe = replace(recipe, size=(32, 40))
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    plain = make_recipe("resnet34_plain", size=(32, 40))
    assert name in RECIPES or recipe.to_dict() != replace(plain, name=name).to_dict()


def test_recipes_have_the_papers_schedule_and_differ_by_its_columns():
    plain, ov, fdt, tn, both = (make_recipe(f"resnet34_{column}") for column in COLUMNS)
    assert (plain.batch_size, plain.epochs, plain.lr, plain.lr_drop_every) == (100, 150, 0.1, 30)
    assert (plain.momentum, plain.weight_decay, plain.augment) == (0.9, 5e-4, Augment(pad=4, flip=True))
    assert (plain.mix, plain.tensor_norm, plain.loss) == (None, None, "cross-entropy")
    assert (ov.mix, ov.loss) == (FDT(targets="dominant"), "cross-entropy")
    assert (fdt.mix, fdt.tensor_norm, fdt.loss) == (both.mix, None, "multi-label") == (FDT(), None, both.loss)
    assert (tn.mix, tn.tensor_norm) == (None, both.tensor_norm) == (None, "straight-through")


def test_fewer_epochs_keep_the_share_of_the_run_before_each_drop():
    assert make_recipe("resnet34_plain", epochs=15).lr_drop_every == 3
    assert make_recipe("resnet34_plain", epochs=2).lr_drop_every == 1
    assert make_recipe("resnet34_plain", epochs=None, lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"loss_eps": 1e-3}, "loss_eps is the multi-label loss's, got 0.001 with cross-entropy"),
        ({"norm": "pono", "tensor_norm": "exact"}, 'norm must be "pono" without tensor_norm'),
        ({"norm": "layer"}, 'norm must be "pono"'),
        ({"label_smoothing": 1.0}, r'label_smoothing must be in \(0, 1\), "fdt-entropy" or None, got 1.0'),
        ({"label_smoothing": "fdt-entropy", "mix": FDT()}, "label_smoothing is for whole images"),
        ({"mix": FDT(), "mix_share": 0.0}, r"mix_share must be in \(0, 1\], got 0.0"),
        ({"mix_share": 0.5}, "mix_share is of what is mixed, got 0.5 without mix"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        Recipe("made up", "small", **changes)
    with pytest.raises(ValueError, match="there is no recipe 'resnet35_plain'; recipes: resnet34_plain"):
        make_recipe("resnet35_plain")


@pytest.mark.parametrize(("epochs", "mixed"), [(150, (140, 120)), (30, (28, 24)), (1, (1, 1))])
def test_the_last_tenth_or_thirty_of_150_epochs_are_clean_and_as_large_a_share_of_fewer(epochs, mixed):
    recipes = [make_recipe(f"small_{column}", epochs=epochs) for column in ("fdt_clean10", "fdt_clean30")]
    assert tuple(recipe.mixed_epochs for recipe in recipes) == mixed
    assert make_recipe("small_fdt", epochs=epochs).mixed_epochs == epochs
    assert make_recipe("small_plain", epochs=epochs).mixed_epochs == 0


def test_the_rows_of_which_mixing_should_i_take_are_those_that_it_is_asked_for():
    mixes = [make_recipe(f"small_{column}").mix for column in MIXINGS]
    assert mixes == [
        None,
        None,
        MixUp(0.2),
        MixUp(1.0),
        CutMix(1.0),
        OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.5}),
        FDT(),
        FDT(max_images=2),
        FDT(series=Power(2.8), min_images=2),
        MixUp(1.0, unique_classes=True),
    ]
    assert make_recipe("small_smoothing").label_smoothing == 0.1
