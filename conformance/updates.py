"""Updates of a base against encoding anew, and against zstd, for successive versions of networks.

    python -m conformance.updates [--data FOLDER] [--networks …] [--qps …] [--chain N]

Digits networks (and with --data ResNet-20, and MiniLM by which sentences belong together) are
trained on with small learning rates on the samples for calibration: some steps make a version.
Each version is encoded as an update of the base, which is the trained network at the same qp;
likewise, but the encoder is told the trained network (`told`); and anew. KL is the divergence of
the decoded network from the version itself on the test images (of MiniLM, the mean of 1 - cosine).
All sizes are in percent of the model in its own type. `zstd` compresses the version's bytes, `XOR`
the bits in which it differs from the trained network, each at level 19.

Sparse versions are lossless: the weights are cast to bfloat16, and of one in a hundred the bits
become the number above or below, as reinforcement learning leaves them. The base is lossless, too.

Chains encode version after version, each as an update of all before, with and without a residual:
KL and error of the last one, and the error of the mean over all versions, which a residual is for.

Runs are seeded, and train on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import zstandard
from torch import nn
from torch.nn import functional

import nnr_codec
from conformance.studies.digits_task import DIGITS, outputs_of
from conformance.subjects import source_of
from nnr_codec import EncodeOptions
from nnr_codec.cli.text import table
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.experiments.measures.metrics import classification
from nnr_codec.experiments.subject import Subject
from nnr_codec.experiments.subject_source import find_subject
from nnr_codec.model import Array
from nnr_codec.training import fine_tune
from nnr_codec.user.module import evaluating

RESNET20 = "resnet20_cifar10"
MINILM = "minilm_pairs"
CHANGES = ((1e-4, 10), (1e-3, 10), (1e-3, 100), (1e-2, 100))
"""Learning rates and steps."""

SHARE = 0.01  # of the weights that move in a sparse version
ZSTD_LEVEL = 19
CODECS = ("update %", "KL", "told %", "KL", "anew %", "KL", "zstd %", "XOR %")
COLUMNS = ("network", "qp", "rate", "steps", *CODECS)
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Network:
    """A trained network, and the images that it is trained on with and judged by."""

    name: str
    subject: Subject
    images: torch.Tensor
    labels: torch.Tensor
    judged: torch.Tensor

    def trained(self) -> nn.Module:
        return trained_module(self.subject)

    def train(self, module: nn.Module, rate: float, steps: int) -> None:
        """Train on; the statistics of batch norm move, too."""
        batches = list(zip(self.images.split(64), self.labels.split(64), strict=True))
        optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)
        fine_tune(module, optimizer, batches, functional.cross_entropy, steps=steps)

    def divergence(self, arrays: Arrays, reference: Arrays) -> float:
        """Return the mean divergence in nats of the network with these tensors from a reference."""
        outputs = [self.outputs(tensors) for tensors in (arrays, reference)]
        return float(classification.divergence_from(*outputs).mean())

    def outputs(self, arrays: Arrays) -> Array:
        module = self.trained()
        state = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        module.load_state_dict(state, strict=False)
        return outputs_of(module, self.judged).numpy()


class Sentences(Network):
    """MiniLM, and pairs of sentences; its divergence is the mean of 1 - cosine."""

    def train(self, module: nn.Module, rate: float, steps: int) -> None:
        """Train on: of each sentence, its partner among those of the batch."""
        batches = [(inputs, None) for inputs, _ in self.subject.calibration()]
        optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)
        fine_tune(module, optimizer, batches, _partner_loss, steps=steps)

    def divergence(self, arrays: Arrays, reference: Arrays) -> float:
        first, second = (self.outputs(tensors) for tensors in (arrays, reference))
        return float(1 - (first * second).sum(-1).mean())

    def outputs(self, arrays: Arrays) -> Array:
        module = self.trained()
        state = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        module.load_state_dict(state, strict=False)
        with torch.no_grad(), evaluating(module):
            return torch.cat([module(*inputs) for inputs, _ in self.subject.batches()]).numpy()


def _partner_loss(outputs: torch.Tensor, _: object) -> torch.Tensor:
    likeness = outputs[:, 0] @ outputs[:, 1].T / 0.05
    return functional.cross_entropy(likeness, torch.arange(len(likeness)))


def network(name: str, data: Path | None) -> Network:
    if name in DIGITS:
        subject = DIGITS[name]()
    elif data is None:
        raise SystemExit(f"{name} needs --data")
    elif name == MINILM:
        nothing = torch.zeros(0)
        subject = find_subject(source_of(f"minilm.py:{name}"), data)
        return Sentences(name, subject, nothing, nothing, nothing)
    else:
        subject = find_subject(source_of(f"cifar_resnets.py:{name}"), data)
    (images, labels), (judged, _) = (
        _joined(part()) for part in (subject.calibration, subject.batches)
    )
    return Network(name, subject, images, labels, judged[:1000])


def _joined(batches: Iterator[tuple[torch.Tensor, Array]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.from_numpy(np.concatenate(labels).astype(np.int64))


def arrays_of(module: nn.Module) -> Arrays:
    """Return the tensors of a module without counters, each a copy."""
    state = module.state_dict().items()
    return {n: t.numpy().copy() for n, t in state if not n.endswith("num_batches_tracked")}


def percent(size: int, arrays: Arrays) -> float:
    return 100 * size / sum(values.nbytes for values in arrays.values())


def compressed(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data))


def joined_bytes(arrays: Arrays, other: Arrays | None = None) -> bytes:
    """Return the bytes of all tensors, or the bits in which those of two models differ."""
    data = np.frombuffer(b"".join(values.tobytes() for values in arrays.values()), np.uint8)
    return (
        data.tobytes()
        if other is None
        else (data ^ np.frombuffer(joined_bytes(other), np.uint8)).tobytes()
    )


def compare(network: Network, qp: int, rate: float, steps: int) -> list[str]:
    """Return the row of one version."""
    torch.manual_seed(0)
    module = network.trained()
    old = arrays_of(module)
    network.train(module, rate, steps)
    new = arrays_of(module)
    options = EncodeOptions(qp=qp)
    base = nnr_codec.encode(old, options=options).data
    streams = [
        nnr_codec.encode(new, options=options, base=[base]).data,
        nnr_codec.encode(new, options=options, base=[base], base_model=old).data,
        nnr_codec.encode(new, options=options).data,
    ]
    decoded = [nnr_codec.decode(stream, base=[base]) for stream in streams[:2]]
    row = [network.name, str(qp), f"{rate:g}", str(steps)]
    for stream, arrays in zip(streams, [*decoded, nnr_codec.decode(streams[2])], strict=True):
        row += [f"{percent(len(stream), new):.2f}", f"{network.divergence(arrays, new):.2g}"]
    others = [compressed(joined_bytes(new)), compressed(joined_bytes(new, old))]
    return row + [f"{percent(size, new):.1f}" for size in others]


def compare_sparse(network: Network) -> list[str]:
    """Return the row of a lossless version of which few weights moved by one bit."""
    rng = np.random.default_rng(0)
    weights = arrays_of(network.trained())
    old = {name: values.astype(ml_dtypes.bfloat16) for name, values in weights.items()}
    new = {}
    for name, values in old.items():
        some = rng.random(values.shape) < SHARE
        words = values.view(np.int16) + some * rng.choice([-1, 1], values.shape).astype(np.int16)
        new[name] = words.view(ml_dtypes.bfloat16)
    options = EncodeOptions(lossless=True)
    base = nnr_codec.encode(old, options=options).data
    update = nnr_codec.encode(new, options=options, base=[base], verify=True).data
    anew = nnr_codec.encode(new, options=options).data
    sizes = [f"{percent(len(data), new):.2f}" for data in (update, anew)]
    others = [compressed(joined_bytes(new)), compressed(joined_bytes(new, old))]
    row = [f"{network.name}, sparse", "exact", "", "", sizes[0], "0", "", "", sizes[1], "0"]
    return row + [f"{percent(size, new):.1f}" for size in others]


def chain(network: Network, qp: int, length: int, has_residual: bool) -> list[str]:
    """Return the row of a chain of updates."""
    torch.manual_seed(0)
    module, options = network.trained(), EncodeOptions(qp=qp)
    new = arrays_of(module)
    streams = [nnr_codec.encode(new, options=options).data]
    error, decoded = {name: np.zeros(values.shape) for name, values in new.items()}, {}
    with tempfile.TemporaryDirectory() as folder:
        residual = Path(folder) / "residual.safetensors" if has_residual else None
        for _ in range(length):
            network.train(module, 1e-3, 10)
            new = arrays_of(module)
            update = nnr_codec.encode(new, options=options, base=streams, residual=residual).data
            decoded = nnr_codec.decode(update, base=streams)
            streams.append(update)
            for name, values in new.items():
                error[name] += (decoded[name] - values) / length
    size = sum(len(stream) for stream in streams[1:])
    anew = nnr_codec.decode(nnr_codec.encode(new, options=options).data)
    last = {name: decoded[name] - values for name, values in new.items()}
    energy = sum(float(np.square(values).sum()) for values in new.values())
    errors = [sum(float(np.square(e).sum()) for e in part.values()) for part in (last, error)]
    return [
        network.name,
        str(qp),
        "with" if has_residual else "without",
        f"{percent(size, new) / length:.2f}",
        f"{errors[0] / energy:.2e}",
        f"{errors[1] / energy:.2e}",
        f"{network.divergence(decoded, new):.2g}",
        f"{network.divergence(anew, new):.2g}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with ResNet-20 and its images")
    names = [*DIGITS, RESNET20, MINILM]
    parser.add_argument("--networks", nargs="+", choices=names, default=list(DIGITS))
    parser.add_argument("--qps", nargs="+", type=int, default=[-38, -24])
    parser.add_argument("--chain", type=int, default=20, help="updates of a chain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    networks = [network(name, given.data) for name in given.networks]
    rows = [
        compare(each, qp, rate, steps)
        for each in networks
        for qp in given.qps
        for rate, steps in CHANGES
    ]
    print(table(COLUMNS, rows + [compare_sparse(each) for each in networks]))
    rows = [
        chain(each, qp, given.chain, has_residual)
        for each in networks
        for qp in given.qps
        for has_residual in (False, True)
    ]
    columns = ("network", "qp", "residual", "update %", "NMSE", "NMSE of mean", "KL", "KL anew")
    print(table(columns, rows))


if __name__ == "__main__":
    main()
