"""The committed feature network: what it knows of held-out scenes, and that the script that made it still learns."""

import torch
from safetensors import safe_open
from train_features import attribute_accuracy, pictures, scenes, train, truth

from microdit.data.shapes import render
from microdit.evaluation.shapes.features import SIDE_PX, VERSION, WEIGHTS, ShapesFeatures, shapes_features


def test_the_committed_weights_name_what_is_in_held_out_scenes():
    accuracy = attribute_accuracy(shapes_features(), count=400)
    assert accuracy.pop("position_error") < 0.06  # two pixels of 32
    assert accuracy.pop("pairs") > 0.8  # every colour on its shape, of 48 that could be
    assert min(accuracy.values()) > 0.98, accuracy


def test_the_committed_weights_are_small_and_say_their_version():
    assert WEIGHTS.stat().st_size < 500_000
    assert VERSION in WEIGHTS.name
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["version"] == VERSION
    assert float(metadata["pairs"]) > 0.8


def test_features_are_nearly_centred_and_of_unit_variance_on_scenes():
    # Exactly so on the scenes they were made from, of which fewer held one object.
    features = shapes_features()(pictures(scenes("evaluation", range(300))))
    assert features.shape == (300, 64)
    assert features.mean(0).abs().max() < 0.4
    assert 0.7 < features.std(0).min() < features.std(0).max() < 1.3


def test_a_scene_drawn_larger_has_nearly_the_same_features():
    drawn = scenes("evaluation", range(40))
    large = torch.stack([torch.from_numpy(render(scene, 2 * SIDE_PX)) for scene in drawn]).permute(0, 3, 1, 2)
    network = shapes_features()
    change = (network(large) - network(pictures(drawn))).square().sum(1).mean()
    others = (network(pictures(drawn)).roll(1, 0) - network(pictures(drawn))).square().sum(1).mean()
    assert change < 0.1 * others


def test_truth_says_what_is_in_a_scene():
    drawn = scenes("train", range(60))
    true = truth(drawn)
    for row, scene in enumerate(drawn):
        assert true.count[row] == len(scene.objects) - 1
        assert true.pairs[row].sum() == len({(thing.shape, thing.colour) for thing in scene.objects})
        assert true.shapes[row].sum() == len({thing.shape for thing in scene.objects})
        assert set(true.positions[row][true.shapes[row] == 0].flatten().tolist()) <= {0.0}


def test_the_script_learns():
    torch.manual_seed(0)
    untrained = attribute_accuracy(ShapesFeatures().eval(), count=100)
    trained = attribute_accuracy(train(steps=80, batch_size=32, seed=0), count=100)
    assert trained["domain"] > untrained["domain"] + 0.1
    assert trained["position_error"] < untrained["position_error"]
