"""Paired differences over seeds, with Student's 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean, stdev

from starfire_cli.records.compare import PairedDifference


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> PairedDifference | None:
    """The mean of `values` minus `others` over the seeds that both have; None where there is no such seed.

    Half the width of the interval is t * s / sqrt(n), with s the standard deviation of the n differences (n - 1 in the
    denominator) and t the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom.
    """
    apart = [value - others[seed] for seed, value in values.items() if seed in others]
    if not apart:
        return None
    half = None
    if len(apart) > 1:
        from scipy.special import stdtrit  # scikit-learn brings scipy

        half = float(stdtrit(len(apart) - 1, 0.975)) * stdev(apart) / math.sqrt(len(apart))
    return PairedDifference(mean=mean(apart), half_width=half, seeds=len(apart))
