"""Principal Filter Analysis: how many channels of a layer are enough, and which repeat others (Suau et al. 2018, arXiv
1807.10585).

All is read from the covariance of a layer's responses over images: (N, C), one number a channel and image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from starfire_cli.pruning.channels.selection.thinet import first_largest

_INACTIVE = 1e-8  # of the largest variance


def covariance(responses_NC: Tensor) -> Tensor:
    """The centred covariance of responses, (C, C), float64."""
    centred_NC = responses_NC.double() - responses_NC.double().mean(0)
    return centred_NC.T @ centred_NC / max(1, len(centred_NC) - 1)


def spectrum(cov_CC: Tensor) -> Tensor:
    """The eigenvalues, at least 0, in descending order, (C,)."""
    ascending_C: Tensor = torch.linalg.eigvalsh(cov_CC)
    return ascending_C.flip(0).clamp_min(0)


def count_by_kl(spectrum_C: Tensor) -> int:
    """The number of channels that the KL recipe keeps: the further the spectrum is from uniform, the fewer."""
    channels = len(spectrum_C)
    if channels == 1:
        return 1
    share_C = spectrum_C / spectrum_C.sum().clamp_min(1e-300) + torch.finfo(torch.float64).eps
    share_C = share_C / share_C.sum()
    divergence = float((share_C * (share_C * channels).log()).sum())
    return min(channels, max(1, math.ceil(channels * (1 - divergence / math.log(channels)))))


def count_by_energy(spectrum_C: Tensor, energy: float) -> int:
    """The number of the largest eigenvalues that hold the share `energy` of their sum, at least 1."""
    total = float(spectrum_C.sum())
    if not total:
        return 1
    enough = (spectrum_C.cumsum(0) / total >= energy).nonzero()
    return int(enough[0]) + 1 if len(enough) else len(spectrum_C)


def counts_by_size(spectra: Sequence[Tensor], keep: int) -> list[int]:
    """The number of channels that each layer keeps, `keep` in all: one energy for all layers decides, to the channel.

    A channel's place is the energy that those before it in its layer hold; the lowest places stay, of equals those of
    the earlier layer. Every layer keeps one.
    """
    places = [
        (float(before), layer, number)
        for layer, spectrum_C in enumerate(spectra)
        for number, before in enumerate((spectrum_C.cumsum(0) - spectrum_C) / spectrum_C.sum().clamp_min(1e-300))
    ]
    kept = sorted(places, key=lambda place: (place[2] > 0, place))[:keep]
    return [sum(layer == number for _, layer, _ in kept) for number in range(len(spectra))]


def inactive_channels(cov_CC: Tensor) -> list[int]:
    """The channels whose response does not vary, in ascending order."""
    variance_C = cov_CC.diagonal().abs()
    return (variance_C < _INACTIVE * variance_C.max()).nonzero().flatten().tolist()


def removal_order(cov_CC: Tensor) -> list[int]:
    """All channels in the order in which they go: the inactive, then each time the one that others repeat most.

    That is the largest sum of |correlations| with those still there; of equals the one with the largest single
    correlation, then the lower index.
    """
    gone = inactive_channels(cov_CC)
    deviation_C = cov_CC.diagonal().abs().sqrt()
    corr_CC = (cov_CC / torch.outer(deviation_C, deviation_C).clamp_min(_INACTIVE)).abs().fill_diagonal_(0)
    corr_CC[gone] = 0
    corr_CC[:, gone] = 0
    left_C = torch.ones(len(corr_CC), dtype=torch.bool)
    left_C[gone] = False
    while bool(left_C.any()):
        sum_C = torch.where(left_C, corr_CC.sum(0), -1.0)
        tied_C = torch.isclose(sum_C, sum_C.max(), rtol=1e-5, atol=1e-8)
        unit = first_largest(torch.where(tied_C & left_C, corr_CC.amax(0), -1.0))
        gone.append(unit)
        left_C[unit] = False
        corr_CC[unit] = 0
        corr_CC[:, unit] = 0
    return gone
