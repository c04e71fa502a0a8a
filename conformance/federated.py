"""Federated averaging of a digits network with two clients, everything sent as updates of a base.

    python -m conformance.federated [--network NAME] [--rounds N] [--qp QP]

The server sends its network, which is not trained yet. In each round both clients train it on their
own images, of which nobody else sees any, and send what changed; the server takes the mean, and
sends what changed in that. All that is sent after the first network is an update of what everybody
has: of the network, and of all updates of the server so far. What quantization of an update does
not carry, its sender adds to the next one. The table has, by round, the bytes that
go up from a client and down to one, in percent of the network's own bytes; those of the same
networks encoded anew; the accuracy on test images, and that of the same training without coding.
Then the sums of all rounds.

Rounds are seeded, and train on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import nnr_codec
from conformance.studies.digits_task import DIGITS, Samples, make_task, outputs_of
from nnr_codec import EncodeOptions
from nnr_codec.cli.text import table
from nnr_codec.experiments.evaluation import trained_module
from nnr_codec.model import Array
from nnr_codec.training import fine_tune

CLIENTS = 2
STEPS = 20  # that a client trains in a round
BATCH = 25
LEARNING_RATE, MOMENTUM = 0.02, 0.9
Arrays = dict[str, Array]


def arrays_of(module: nn.Module) -> Arrays:
    """Return the tensors of a module without counters, each a copy."""
    state = module.state_dict().items()
    return {n: t.numpy().copy() for n, t in state if not n.endswith("num_batches_tracked")}


def load(module: nn.Module, arrays: Arrays) -> None:
    state = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    module.load_state_dict(state, strict=False)


def mean_of(models: Sequence[Arrays]) -> Arrays:
    return {name: np.mean([m[name] for m in models], axis=0) for name in models[0]}


@dataclass
class Shared:
    """What everybody has.

    Attributes:
        options: of all streams.
        streams: oldest first.
    """

    options: EncodeOptions
    streams: list[bytes] = field(default_factory=list)

    def network(self) -> Arrays:
        *base, last = self.streams
        return nnr_codec.decode(last, base=base)


@dataclass
class Sender:
    """One that sends networks, each as an update of what everybody has.

    Attributes:
        shared: that.
        sent, anew: bytes that were sent so far, and those of the same networks encoded anew.
        left: what the last update did not carry.
    """

    shared: Shared
    sent: int = 0
    anew: int = 0
    left: Arrays = field(default_factory=dict)

    def send(self, arrays: Arrays) -> tuple[bytes, Arrays]:
        """Return the stream, and the network that it is decoded to."""
        wanted = {name: values + self.left.get(name, 0) for name, values in arrays.items()}
        options, base = self.shared.options, self.shared.streams
        stream = nnr_codec.encode(wanted, options=options, base=base).data or b""
        decoded = nnr_codec.decode(stream, base=base)
        self.left = {name: values - decoded[name] for name, values in wanted.items()}
        self.sent += len(stream)
        self.anew += len(nnr_codec.encode(arrays, options=options).data or b"")
        return stream, decoded


class Federation:
    """Clients with their images, and the images that networks are judged by."""

    def __init__(self, name: str) -> None:
        self._task = make_task(name)
        images, labels = self._task.train
        self.clients: list[Samples] = [
            (images[client::CLIENTS], labels[client::CLIENTS]) for client in range(CLIENTS)
        ]
        self._module = trained_module(self._task.subject)
        torch.manual_seed(0)
        for part in self._module.modules():
            reset: Callable[[], None] | None = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
        self.start = arrays_of(self._module)

    def trained(self, arrays: Arrays, client: int, turn: int) -> Arrays:
        """Return a network as a client has trained it in a turn."""
        load(self._module, arrays)
        images, labels = self.clients[client]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(turn))
        batches = list(zip(images[order].split(BATCH), labels[order].split(BATCH), strict=True))
        parameters = self._module.parameters()
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM)
        fine_tune(self._module, optimizer, batches, functional.cross_entropy, steps=STEPS)
        return arrays_of(self._module)

    def accuracy(self, arrays: Arrays) -> float:
        """Return the part of the test images that a network is right about, in percent."""
        load(self._module, arrays)
        images, labels = self._task.test
        return 100 * float((outputs_of(self._module, images).argmax(1) == labels).float().mean())


def rounds(federation: Federation, count: int, options: EncodeOptions) -> list[list[str]]:
    """Return the rows of all rounds, and of their sums."""
    shared, plain = Shared(options), federation.start
    server, clients = Sender(shared), [Sender(shared) for _ in range(CLIENTS)]
    senders = [*clients, server]
    shared.streams.append(server.send(plain)[0])
    rows = [_row("start", senders, federation, plain)]
    for turn in range(count):
        before = [(sender.sent, sender.anew) for sender in senders]
        known = shared.network()
        trained = [federation.trained(known, client, turn) for client in range(CLIENTS)]
        pairs = zip(clients, trained, strict=True)
        received = [client.send(network)[1] for client, network in pairs]
        shared.streams.append(server.send(mean_of(received))[0])
        plain = mean_of([federation.trained(plain, client, turn) for client in range(CLIENTS)])
        rows.append(_row(str(turn + 1), senders, federation, plain, before))
    return [*rows, [*_row("all", senders, federation, plain)[:5], "", ""]]


def _row(
    turn: str,
    senders: Sequence[Sender],
    federation: Federation,
    plain: Arrays,
    before: Sequence[tuple[int, int]] = (),
) -> list[str]:
    """Return a row of what was sent since `before`, and of the accuracy now."""
    sums = np.array([(sender.sent, sender.anew) for sender in senders])
    sums = sums - np.array(before) if before else sums
    bytes_by_way = np.array([sums[:-1].mean(axis=0), sums[-1]]).T.reshape(-1)
    size = sum(values.nbytes for values in plain.values())
    known = senders[-1].shared.network()
    accuracies = (federation.accuracy(arrays) for arrays in (known, plain))
    shares = (f"{100 * part / size:.1f}" for part in bytes_by_way)
    return [turn, *shares, *(f"{accuracy:.1f}" for accuracy in accuracies)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=list(DIGITS), default="digits_residual")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--qp", type=int, default=-24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("round", "up %", "down %", "up anew %", "down anew %", "accuracy %", "uncoded %")
    options = EncodeOptions(qp=given.qp, max_tensor_error=None)
    print(table(columns, rounds(Federation(given.network), given.rounds, options)))


if __name__ == "__main__":
    main()
