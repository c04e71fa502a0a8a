"""From a dense network to bytes: decomposed in steps, trained, encoded, decoded, and in ONNX.

    python -m conformance.decompose_and_train -o FOLDER [--ratio 8] [--steps 150]

To be copied: put your module, its batches and its accuracy in place of those of the digits.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

import nnr_codec
from conformance.studies.digits_task import make_task, top1
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.layers import dense_state, factored_weights, load_into
from nnr_codec.options import DecompositionOptions
from nnr_codec.training import (
    Distillation,
    decompose_gradually,
    fine_tune,
    reestimate_batch_norm,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--ratio", type=float, default=8, help="parameters before over after")
    parser.add_argument("--steps", type=int, default=150, help="of training after each of three")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    task = make_task("digits_cnn")  # your batches and accuracy
    dense = trained_module(task.subject).eval()  # your module
    images = task.train[0]

    def report(stage: str, module: nn.Module) -> bytes:
        """Print what a module takes and is worth; return its bitstream."""
        factors = factored_weights(module)
        stream = nnr_codec.encode(dense_state(module), factorizations=factors).data or b""
        parameters = sum(parameter.numel() for parameter in module.parameters())
        print(f"{stage:22} {parameters:7} {len(stream):7} {top1(module, task.test):6.2f} %")
        return stream

    def train(module: nn.Module) -> None:
        reestimate_batch_norm(module, [images])
        report("decomposed", module)
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
        fine_tune(module, optimizer, task.batches(64), nn.functional.cross_entropy,
                  steps=given.steps, distillation=Distillation(dense),
                  after_step=schedule.step)  # fmt: skip
        reestimate_batch_norm(module, [images])
        report("trained", module)

    print(f"{'':22} weights   bytes    top-1")
    report("dense", dense)
    decomposition = DecompositionOptions("tucker2", compression_ratio=given.ratio)
    options = nnr_codec.EncodeOptions(decomposition=decomposition)
    module = decompose_gradually(copy.deepcopy(dense), options, train, batches=images.split(100))
    stream = report("to be sent", module)
    decoded = load_into(trained_module(task.subject), stream).eval()  # a dense module, until here
    report("decoded, on factors", decoded)
    (given.output / "digits.nnr").write_bytes(stream)
    onnx = str(given.output / "digits.onnx")
    torch.onnx.export(decoded, (images[:1],), onnx, dynamo=False)


if __name__ == "__main__":
    main()
