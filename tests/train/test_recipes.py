import json
from dataclasses import replace

import pytest

from fdt_pipeline import FDT, Augment
from train.recipes import COLUMNS, CONTROLS, RECIPES, Recipe, make_recipe


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
    assert (plain.fdt, plain.tensor_norm, plain.loss) == (None, None, "cross-entropy")
    assert (ov.fdt, ov.loss) == (FDT(targets="dominant"), "cross-entropy")
    assert (fdt.fdt, fdt.tensor_norm, fdt.loss) == (both.fdt, None, "multi-label") == (FDT(), None, both.loss)
    assert (tn.fdt, tn.tensor_norm) == (None, both.tensor_norm) == (None, "straight-through")


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
        ({"label_smoothing": 0.1}, 'label_smoothing must be "fdt-entropy" or None, got 0.1'),
        ({"mixup": 0.0}, "mixup must be above 0"),
        ({"mixup": 1.0, "fdt": FDT()}, "controls on whole images"),
        ({"label_smoothing": "fdt-entropy", "fdt": FDT()}, "controls on whole images"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        Recipe("made up", "small", **changes)
    with pytest.raises(ValueError, match="there is no recipe 'resnet35_plain'; recipes: resnet34_plain"):
        make_recipe("resnet35_plain")
