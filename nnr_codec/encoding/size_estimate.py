"""About how many bytes a model takes at an offset of all qp: for the search for a target size."""

from __future__ import annotations

import numpy as np

from ..bitstream.qp import step_size
from ..options import EncodeOptions
from .survey import ModelSurvey
from .tensor_quantizer import nominal_qp


class SizeEstimate:
    """The bytes of the quantized tensors, by the means of their integers in samples.

    Integers are assumed to be geometrically distributed, which is right to some percent.
    """

    def __init__(self, survey: ModelSurvey, options: EncodeOptions) -> None:
        """`survey`: with samples of the quantized tensors."""
        self._steps_per_octave = 1 << options.qp_density
        magnitudes, sizes = [np.zeros(0)], []
        for parameter in survey.coded:
            sample = survey.tensors[parameter.name].sample
            if sample is not None:
                tensor_options = options.for_tensor(parameter.name)
                step = step_size(nominal_qp(parameter, tensor_options), options.qp_density)
                # Dependent quantization takes every other multiple of the step for one integer.
                magnitudes.append(np.abs(sample) / (2 * step if tensor_options.dq else step))
                sizes.append(parameter.size)
        self._magnitudes = np.concatenate(magnitudes)
        self._counts = np.array([len(sample) for sample in magnitudes[1:]], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        self._sizes = np.array(sizes, np.float64)

    def bytes_at(self, offset: int) -> float:
        """Return the bytes with `offset` added to every qp."""
        if not self._sizes.size:
            return 0.0
        levels = np.rint(self._magnitudes * 2.0 ** (-offset / self._steps_per_octave))
        mean = np.add.reduceat(levels, self._starts) / self._counts
        signs = np.add.reduceat(np.minimum(levels, 1.0), self._starts) / self._counts
        entropy = (1 + mean) * np.log2(1 + mean) - mean * np.log2(np.where(mean > 0, mean, 1.0))
        return float(self._sizes @ (entropy + signs)) / 8
