"""Sparse linear layers: a gather of the inputs for one image, one vector lane an image for several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.sparse import compiler, loops
from starfire_cli.sparse.convolution import TILINGS, Place, SlidingWindow, Work, steps
from starfire_cli.sparse.layout import FLOAT, LARGEST, LINE, Layout
from starfire_cli.sparse.loops import FIELDS, Finish
from starfire_cli.sparse.machine import Program, Step, in_threads, threads
from starfire_cli.sparse.pool import LoopWeightsCache
from starfire_cli.sparse.weights import LiveWeights, in_memory

FEW = 4  # images; so few are done one by one


class SparseLinear:
    """A linear layer from its live weights.

    Args:
        live: (O, I, 1, 1).
        images: how many there are at a time; another number needs another object.
    """

    def __init__(self, live: LiveWeights, images: int) -> None:
        self._live = live
        if images < FEW:
            self._gathered()
            return
        O, I = live.shape[:2]
        lanes = compiler.lanes()
        layout = Layout(height=1, width=images, above=0, beside=0, lanes=lanes)
        self._source = Place(kept=False, offset=0, layout=layout, channels=I)
        self._target = Place(kept=True, offset=0, layout=layout, channels=O)
        work = Work(
            window=SlidingWindow(size=(1, 1), stride=1, padding=(0, 0), dilation=(1, 1)), live=live, finish=Finish()
        )
        self._program = Program(
            steps(
                work,
                "taps",
                TILINGS["taps"][lanes][0],
                self._source,
                self._target,
                other=None,
                half=None,
                threads=threads(),
                lanes=lanes,
                cache=LoopWeightsCache(),
            )
        )

    @staticmethod
    def max_images(inputs: int) -> int:
        """The largest number of images of so many inputs that 32-bit offsets can address at a time."""
        planes = LARGEST // (FLOAT * max(1, inputs))  # floats of each: its images, and less than ten cache lines beside
        return max(1, planes - 10 * LINE)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the layer: (..., I) to (..., O), float32."""
        flat = in_memory(images.reshape(-1, images.shape[-1]))
        found = torch.stack([self._one(row) for row in flat.contiguous()]) if len(flat) < FEW else self._all(flat)
        return found.reshape(*images.shape[:-1], -1)

    def _all(self, images_NI: Tensor) -> Tensor:
        source = torch.zeros(1, self._source.layout.floats(self._source.channels))
        target = torch.zeros(1, self._target.layout.floats(self._target.channels))
        view = self._source.layout.view(source, 0, self._source.channels)
        view[0, :, 0] = images_NI.t()
        self._program.run_one(source.data_ptr(), target.data_ptr(), 0, threads())
        return self._target.layout.view(target, 0, self._target.channels)[0, :, 0].t().contiguous()

    def _gathered(self) -> None:
        I = self._live.shape[1]
        self._step = gathering(self._live, np.arange(I, dtype=np.int32), {}, lanes=compiler.lanes())
        self._args = self._step.args()

    def _one(self, row: Tensor) -> Tensor:
        found = torch.empty(self._live.shape[0])
        args = self._args.copy()
        args[FIELDS.index("in")], args[FIELDS.index("out")] = row.data_ptr(), found.data_ptr()
        in_threads(self._step.code, args, len(found), threads())
        return found


def gathering(live: LiveWeights, positions: Any, places: Mapping[str, int], *, lanes: int) -> Step:
    """The step of a linear layer for one image.

    Args:
        live: (O, I, 1, 1).
        positions: int32 (I,), floats from the beginning of `in` to each input.
        places: where input and output lie, as arguments of the loop.
        lanes: floats in a vector.
    """
    O, I = live.shape[:2]
    row, column = np.divmod(live.where, I)
    counts = np.bincount(row, minlength=O)
    vectors = -(-counts // lanes)
    starts = np.zeros(O + 1, np.int32)
    np.cumsum(vectors, out=starts[1:])
    # Entries come in whole vectors; what is missing of the last one is input 0 times zero.
    first = np.repeat(np.cumsum(counts) - counts, counts)
    place = starts[row].astype(np.int64) * lanes + np.arange(len(row)) - first
    offsets = np.zeros(max(1, int(starts[-1]) * lanes), np.int32)
    weights = np.zeros(len(offsets), np.float32)
    offsets[place], weights[place] = positions[column], live.values
    values = {**places, "segments": starts, "offsets": offsets, "weights": weights, "bias": live.bias}
    return Step(code=loops.gathered(lanes=lanes), values=values, tasks=O, grain=O)
