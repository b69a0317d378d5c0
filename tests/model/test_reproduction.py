"""Weights of two runs are compared bit by bit, and a repetition has the settings of its run."""

import pytest
import torch
from safetensors.torch import save_file

from rewardsmith.config import TrainSettings, build
from rewardsmith.model.precision import choose_precision
from rewardsmith.model.reproduction import compare_weights, repeated_settings

NAN = float("nan")
AUTO = choose_precision("auto", torch.device("cpu"), "").name


def compare(tmp_path, before, after):
    for name, tensors in (("before", before), ("after", after)):
        save_file({key: torch.as_tensor(value) for key, value in tensors.items()}, tmp_path / name)
    return compare_weights(tmp_path / "before", tmp_path / "after")


def test_the_same_bits_are_equal_and_a_nan_is_itself(tmp_path):
    found = compare(tmp_path, {"a": [1.0, NAN], "b": 2.0}, {"a": [1.0, NAN], "b": 2.0})
    assert (found.bit_equal, found.tensors, found.differing, found.largest, found.only) == (True, 2, 0, 0.0, [])


def test_zero_and_minus_zero_are_other_bits(tmp_path):
    found = compare(tmp_path, {"a": [0.0, 1.0]}, {"a": [-0.0, 1.0]})
    assert (found.bit_equal, found.differing, found.largest, found.where) == (False, 1, 0.0, "a")


def test_the_largest_difference_is_named(tmp_path):
    found = compare(tmp_path, {"a": [1.0, 2.0], "b": [1.0], "c": [5.0]}, {"a": [1.0, 2.5], "b": [3.0], "c": [5.0]})
    assert (found.bit_equal, found.tensors, found.differing, found.largest, found.where) == (False, 3, 2, 2.0, "b")


@pytest.mark.parametrize("side", [0, 1])
def test_a_tensor_that_one_side_lacks_is_no_equality(tmp_path, side):
    both, more = {"a": [1.0]}, {"a": [1.0], "b": [2.0]}
    found = compare(tmp_path, *((more, both) if side else (both, more)))
    assert not found.bit_equal and found.only == ["b"] and found.differing == 0


def test_another_shape_or_type_is_no_equality(tmp_path):
    found = compare(tmp_path, {"a": [1.0], "b": [1, 2]}, {"a": [[1.0]], "b": [1.0, 2.0]})
    assert not found.bit_equal and found.only == ["a", "b"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_distance_to_nan_is_no_number_wherever_it_stands(tmp_path, order):
    first, second = order
    found = compare(tmp_path, {first: [1.0], second: [1.0]}, {first: [NAN], second: [2.0]})
    assert (found.bit_equal, found.largest, found.where) == (False, None, first)


def repeated(recorded=None, *, device=None, threads=None, manifest=None):
    """Settings of a run on a CPU, and notes, as they are repeated."""
    settings = build(TrainSettings, {"model": "m", "data": "d", "out": "o", "device": "cpu", **(recorded or {})})
    here = {"device": {"type": "cpu", "threads": torch.get_num_threads()}, "precision": {"name": AUTO}}
    places = {"model": "base", "data": "here.jsonl", "dev_data": None, "eval_data": None, "out": "again"}
    return repeated_settings(settings.model_dump(), here | (manifest or {}), places, device=device, threads=threads)


def test_a_repetition_has_the_places_given_and_otherwise_the_settings_of_its_run():
    settings, notes = repeated({"seed": 7, "epochs": 2})
    assert (settings.model, settings.data, settings.out) == ("base", "here.jsonl", "again")
    assert (settings.seed, settings.epochs, settings.threads, settings.precision) == (7, 2, None, "auto")
    assert notes == []


def test_a_repetition_has_the_threads_of_its_run_unless_told_otherwise():
    here = torch.get_num_threads()
    manifest = {"device": {"type": "cpu", "threads": here + 1}}
    settings, notes = repeated(manifest=manifest)
    assert settings.threads == here + 1 and notes == [f"threads: {here + 1}"]
    assert repeated(manifest=manifest, threads=here + 2)[0].threads == here + 2
    # What was set stands, whatever the process has.
    assert repeated({"threads": here + 3}, manifest=manifest)[0].threads == here + 3


def test_what_auto_became_then_is_set_where_it_would_become_something_else():
    other = "bf16" if AUTO == "float32" else "float32"
    settings, notes = repeated(manifest={"precision": {"name": other}})
    assert settings.precision == other and notes == [f"precision: {other}, which was chosen then"]
    assert repeated({"precision": AUTO}, manifest={"precision": {"name": other}})[0].precision == AUTO


def test_a_repetition_reports_to_nobody_and_keeps_the_rest_of_the_trainer():
    told = {"report_to": "wandb", "push_to_hub": True, "hub_token": "hf_x", "hub_model_id": "me/x", "run_name": "r"}
    settings, _ = repeated({"trainer": told | {"save_steps": 3}})
    assert settings.trainer == {"save_steps": 3}
