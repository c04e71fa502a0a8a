"""Make random valid bitstreams straight from the syntax of spec/bitstream.md, with their tensors.

    python -m conformance.generate --seed 1 --count 100 -o DIR

writes a case (see conformance/README.md) for each seed from 1 on, some of them the last of a series
of updates. What is written is drawn from the syntax and not from a model, and nothing of nnr_codec
writes it; the expected tensors come from spec/educational_decoder.py. The same seed gives the same
bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .generator.random_headers import (
    Draws,
    layer_parameter_set,
    model_parameter_set,
    private_unit,
    quantization_data,
    reference_list,
    topology,
)
from .generator.random_tensors import Past, StreamState, UnitPlan, data_unit, plan
from .generator.syntax import INT, NNR_LPS, NNR_MPS, NNR_STR, RAW_FLOAT, unit_of
from .suite.cases import CaseFiles, write_case
from .suite.educational import described
from .suite.tools_used import tools_of


def generate(seed: int, *, common: bool = False) -> list[bytes]:
    """Make a random valid stream: the last one returned, behind the earlier ones of its series.

    Args:
        seed: a number of 0 or more; it alone decides.
        common: only syntax that other decoders are known to read as well (spec/errata.md).
    """
    d = Draws(seed)
    profile = d.below(2)
    length = d.of(1, 2, 3, 4) if profile else d.of(1, 1, 1, 2)
    plans = [plan(d, f"{name}{i}", common) for i, name in enumerate(_names(d))]
    past: dict[str, Past] = {}
    numbers: dict[str, int] = {}
    streams = []
    for step in range(length if not common or profile else 1):
        held = [p for p in plans if step == 0 or d.chance(0.8)] or plans[:1]
        mps = model_parameter_set(d, profile, common, series=step > 0)
        if not common and all(p.payload in (INT, RAW_FLOAT) for p in held):
            mps["mps_quantization_method_flags"] = 0  # nothing is quantized
        indexed = int(not common and sum(len(p.names) for p in held) > 1 and d.chance(0.2))
        mps["mps_topology_indexed_reference_flag"] = indexed
        density, parameter = mps["mps_qp_density"], mps["mps_quantization_parameter"]
        state = StreamState(profile, mps, density, parameter, common, past, numbers)
        streams.append(_stream(d, held, state))
        _remember(past, state.integers)
    return streams


def _names(d: Draws) -> list[str]:
    words = ("fc", "größe.β", "a_Gb_H.c", "layers/0", "w", "层", " ")
    return [d.of(*words) for _ in range(d.between(1, 4))]


def _stream(d: Draws, plans: list[UnitPlan], state: StreamState) -> bytes:
    mps = state.mps
    units = [unit_of(NNR_STR, {"general_profile_idc": state.profile})]
    extras = 0.0 if state.common else 0.15
    units += [private_unit(d)] if d.chance(extras) else []
    units.append(unit_of(NNR_MPS, mps, state.profile))
    units += [topology(d, state.common)] if d.chance(0.7) else []
    if mps["mps_topology_indexed_reference_flag"]:
        state.reference_list = [name for p in plans for name in p.names]
        units.append(reference_list(state.reference_list))
    for p in plans:
        units += [make(d) for make in (private_unit, quantization_data) if d.chance(extras)]
        if d.chance(extras):
            units.append(_layer_parameters(d, state))
        units.append(data_unit(d, p, state))
    return b"".join(units)


def _layer_parameters(d: Draws, state: StreamState) -> bytes:
    """An LPS, and what is in force behind it: its quantization, or that of the MPS (E38)."""
    lps = layer_parameter_set(d)
    source, prefix = (lps, "lps") if "lps_qp_density" in lps else (state.mps, "mps")
    state.density = source[f"{prefix}_qp_density"]
    state.parameter = source[f"{prefix}_quantization_parameter"]
    return unit_of(NNR_LPS, lps)


def _remember(past: dict[str, Past], integers: dict[str, list[int]]) -> None:
    """Hand on to the next stream what its contexts need."""
    for name, q in integers.items():
        before = past.get(name)
        seen = before.seen if before else [False] * len(q)
        seen = [old or value != 0 for old, value in zip(seen, q, strict=True)]
        past[name] = Past(q, seen, before.occurrences + 1 if before else 1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("conformance.generate", description="Random valid streams.")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many streams")
    parser.add_argument("--common", action="store_true", help="only widely implemented syntax")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=Path)
    given = parser.parse_args(arguments)
    if given.seed < 0 or given.count < 1:
        parser.error("--seed is 0 or more, --count at least 1")
    for seed in range(given.seed, given.seed + given.count):
        try:
            write_case(given.output / f"seed_{seed}", generated_case(seed, given.common))
        except OSError as error:
            print(f"conformance.generate: {error}", file=sys.stderr)
            return 1
    print(f"{given.count} cases in {given.output}")
    return 0


def generated_case(seed: int, common: bool) -> CaseFiles:
    """The case of a generated stream; its tensors are those of the educational decoder."""
    *parents, stream = generate(seed, common=common)
    kind = "common syntax, " if common else ""
    text = f"random stream ({kind}seed {seed}): {', '.join(tools_of(stream))}"
    return CaseFiles(stream, text, "2-14", parents, described(stream, parents))


if __name__ == "__main__":
    sys.exit(main())
