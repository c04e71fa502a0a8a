"""About how many bytes a model takes at an offset of all qp: for the search for a target size."""

from __future__ import annotations

import numpy as np

from ...bitstream.qp import step_size
from ...model import Float64
from ...options import EncodeOptions
from ..survey import ModelSurvey
from ..tensor_quantizer import nominal_step


class SizeEstimate:
    """The bytes of the quantized tensors, by the means of their integers in samples.

    Integers are assumed to be geometrically distributed, which is right to some percent. A tensor
    whose values lie on a step takes no more than their integers.
    """

    def __init__(self, survey: ModelSurvey, options: EncodeOptions) -> None:
        """`survey`: with samples of the quantized tensors."""
        density = options.qp_density
        self._steps_per_octave = 1 << density
        magnitudes, sizes, scales = [np.zeros(0)], [], []
        for parameter in survey.coded:
            tensor = survey.tensors[parameter.name]
            if tensor.sample is not None:
                tensor_options = options.for_tensor(parameter.name)
                step = nominal_step(parameter, tensor_options)
                # Dependent quantization takes every other multiple of the step for one integer.
                step *= 1 + tensor_options.dq
                magnitudes.append(np.abs(tensor.sample) / step)
                sizes.append(parameter.size)
                qp = tensor.step_qp
                scales.append(0.0 if qp is None else step / step_size(qp, density))
        self._magnitudes = np.concatenate(magnitudes)
        self._counts = np.array([len(sample) for sample in magnitudes[1:]], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._sizes = np.array(sizes, np.float64)
        self._most = np.where(scales, self._bits(np.repeat(scales, self._counts)), np.inf)

    def bytes_at(self, offset: int) -> float:
        """Return the bytes with `offset` added to every qp."""
        bits = self._bits(2.0 ** (-offset / self._steps_per_octave))
        return float(self._sizes @ np.minimum(bits, self._most)) / 8

    def _bits(self, scale: float | Float64) -> Float64:
        """Return the bits per element of each tensor, whose integers are scaled magnitudes."""
        if not self._sizes.size:
            return self._sizes
        # The trellis of dependent quantization rounds to halves, too.
        fine = 2 * self._magnitudes * scale
        levels = np.rint(fine) / 4 + np.rint(fine / 2) / 2
        mean = np.add.reduceat(levels, self._starts) / self._counts
        signs = np.add.reduceat(np.minimum(levels, 1.0), self._starts) / self._counts
        entropy = (1 + mean) * np.log2(1 + mean) - mean * np.log2(np.where(mean > 0, mean, 1.0))
        return np.asarray(entropy + signs)
