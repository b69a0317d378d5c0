"""Graphs of a network on disk, in ONNX and OpenVINO's form, in float32 or with linear layers of 8 bits; the head is float32 in all of them."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsmith.model.runtimes import GRAPHS, package, require_bf16, unreadable
from rewardsmith.model.tracing import OUTPUT_NAME, ScoreGraph, quiet_tracing

_OPSET = 17
# Largest whole number of 8 bits with a sign that has its negative.
_INT8 = 127


def write_onnx(graph: ScoreGraph, example: dict[str, Tensor], folder: Path, precision: str) -> None:
    """model.onnx of a network, traced: torch's newer exporter needs one package more and freezes the batch of some architectures."""
    path = folder / GRAPHS["onnx"]
    names = list(example)
    open_sizes = {name: {0: "texts", 1: "tokens"} for name in names} | {OUTPUT_NAME: {0: "texts"}}
    with quiet_tracing():
        torch.onnx.export(
            graph,
            tuple(example.values()),
            str(path),
            input_names=names,
            output_names=[OUTPUT_NAME],
            dynamic_axes=open_sizes,
            opset_version=_OPSET,
            dynamo=False,
        )
    if precision == "int8":
        _quantise_onnx(path)


def _quantise_onnx(path: Path) -> None:
    """Linear layers in 8 bits, but for those that narrow: weights by output channel once, inputs by their range at each call."""
    onnx, quantization = package("onnx", "onnx"), package("onnxruntime.quantization", "onnx")
    whole = path.with_name("float32.onnx")
    path.rename(whole)
    with _quiet_root_log():
        quantization.quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_narrowing(onnx.load(whole, load_external_data=False)),
        )
    whole.unlink()


def _narrowing(model: Any) -> list[str]:
    """Linear layers with more inputs than outputs, by name.

    Behind an activation function a few inputs are far larger than the rest, and one range for all leaves the rest few steps: in MiniLM these layers bring more
    than half of the whole error (docs/export.md).
    """
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer if len(one.dims) == 2}
    names = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in shapes:
            continue
        inputs, outputs = shapes[node.input[1]]
        if any(one.name == "transB" and one.i for one in node.attribute):
            inputs, outputs = outputs, inputs
        if inputs > outputs:
            names.append(node.name)
    return names


@contextmanager
def _quiet_root_log() -> Iterator[None]:
    """The quantiser advises on the root logger, of steps that matter for other targets."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_openvino(graph: ScoreGraph, example: dict[str, Tensor], folder: Path, precision: str) -> None:
    """model.xml and model.bin of a network. bf16 is a way of computing: on disk such a model is float32."""
    openvino = package("openvino", "openvino")
    if precision == "bf16":
        require_bf16(openvino.Core())
    path = folder / GRAPHS["openvino"]
    shapes = [(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in example]
    with quiet_tracing():
        try:
            model = openvino.convert_model(graph, example_input=dict(example), input=shapes)
        except RuntimeError as error:
            raise unreadable(path, error) from error
    for place, name in zip(model.inputs, example, strict=True):
        place.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({OUTPUT_NAME})
    if precision == "int8":
        _compress_openvino(model)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _compress_openvino(model: Any) -> None:
    """Weights of linear layers as 8-bit numbers and one scale an output channel, in the pattern that OpenVINO multiplies in 8 bits where the processor can."""
    operations = package("openvino.opset13", "openvino")
    for node in model.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input(1).get_source_output().get_node()
        if weight.get_type_name() != "Constant" or len(weight.get_output_shape(0)) != 2:
            continue
        numbers, scale = eight_bits(weight.get_data(), axis=1 if node.get_attributes()["transpose_b"] else 0)
        small = operations.convert(operations.constant(numbers), "f32")
        node.input(1).replace_source_output(operations.multiply(small, operations.constant(scale)).output(0))


def eight_bits(weight: NDArray[np.float32], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix as whole numbers and a scale, symmetric around 0: weight = numbers * scale, to half a step.

    >>> numbers, scale = eight_bits(np.array([[0.5, -1.27]], np.float32), axis=1)
    >>> numbers.tolist(), round(float(scale[0, 0]), 6)
    ([[50, -127]], 0.01)

    Args:
        weight: a matrix.
        axis: along which one scale serves: that of the inputs.
    """
    scale = np.abs(weight).max(axis=axis, keepdims=True) / _INT8
    scale[scale == 0] = 1  # a channel of zeros stays one
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)


def holds_numbers(folder: Path, numbers: NDArray[np.float32]) -> bool:
    """Whether a file of the folder holds an array to the bit, as the formats store it: little-endian, one number after the other."""
    wanted = np.ascontiguousarray(numbers, dtype="<f4").tobytes()
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(wanted) >= 0:
                return True
    return False
