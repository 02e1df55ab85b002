"""Finds the prunable layers of a bare state dict by names, neighbouring keys and shapes.

A Conv2d or Linear keeps its weight as `NAME.weight`, (K, C, R, S) or (O, I), and its bias, if any, as `NAME.bias`, (K,)
or (O,). Embeddings, tables, constants, norms over maps and transposed convolutions have 2 or 4 axes as well. What is
one of these is left out; what may be either is left out too, with a reason that asks for the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from starfire_cli.text import by_number

UNCLEAR = "the file does not tell"
"""The beginning of the reason for a tensor that may be a layer all the same."""

_EMBEDDING_OR_LINEAR = f"{UNCLEAR} a linear layer without bias from an embedding"
_TRANSPOSED_OR_NOT = f"{UNCLEAR} a convolution from a transposed one"

# The last word of a module's name says what it is: `word_embeddings` are embeddings, `embed_proj` is a projection.
_TABLE = re.compile(
    r"emb(ed|eds|edding|eddings|edder|s)?|w[tp]e|tok(ens?)?|vocab(ulary)?|words?|pos(ition|itions|itional|emb)?|"
    r"codebook|codes|lookup|lut|tables?|dict(ionary)?|prototypes|anchors|index|indices|coords|queries|labels?|"
    r"memory|bank|entity|entities|users?|items?"
)
_LINEAR = re.compile(
    r"fcs?|lin(ear)?|dense|heads?|classifier|cls|logits?|q?k?v?|query|key|value|proj(ection)?|mlp|ff|ffn|reduc(e|tion)|"
    r"expan(d|sion)|attn|attention|in|out|output|w|weights|gate|hidden|last|affine|to|mixer|down|up|squeeze|excite|"
    r"excitation|se|fusion|mapping|conv"
)
_TRANSPOSED = re.compile(r"deconv|transp|t_?conv|conv_?t(\d|r|$)|up_?conv|upsampl|(^|_)up(_|\d|$)|^ct\d*$|unpool")
_EMBEDDING_RMS = 0.7  # embeddings begin with 1; a linear layer with _WIDE inputs begins with 0.14, and never gets there
_WIDE = 16


@dataclass(frozen=True, kw_only=True)
class SortedState:
    """The tensors of a state dict, sorted into layers and others.

    Args:
        layers: keys of the weights of convolutions and linear layers, in the file's order.
        left_out: (key, why not) of other floating-point tensors with two axes or more.
        unclear: keys of `left_out` that may be layers; only the model says.
    """

    layers: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def unclear(self) -> tuple[str, ...]:
        return tuple(key for key, reason in self.left_out if reason.startswith(UNCLEAR))


def sort_state(state: Mapping[str, Tensor], masked: Collection[str] = ()) -> SortedState:
    """Tell layers from other tensors; those of integers, empty ones and those of one axis are not mentioned.

    Args:
        state: a state dict.
        masked: keys of tensors that have a mask, so that somebody has pruned them: names and doubts do not count there.
    """
    sorter = _Sorter(state, masked)
    reasons = {key: sorter.reason(key) for key, tensor in state.items() if tensor.ndim >= 2 and _counts(tensor)}
    return SortedState(
        layers=tuple(key for key, reason in reasons.items() if reason is None),
        left_out=tuple((key, reason) for key, reason in reasons.items() if reason is not None),
    )


class _Sorter:
    """One state dict, gone through in its order."""

    def __init__(self, state: Mapping[str, Tensor], masked: Collection[str]) -> None:
        self._state, self._masked = state, masked
        weights = {key: _stem(key) for key, tensor in state.items() if _is_weight(key) and _counts(tensor)}
        self._as_in_torch = any(map(_is_weight, state))
        self._maps = [key for key in weights if state[key].ndim == 4]
        self._place = {key: i for i, key in enumerate(self._maps)}
        # The convolution that sees images: the first, unless the file's order is that of names.
        keys = list(state)
        in_order = keys != sorted(keys, key=by_number) or (bool(keys) and keys[0][:1].isdigit())
        self._stem_weight = self._maps[0] if self._maps and in_order else ""
        self._out: dict[str, int] = {}  # output channels of the maps told so far
        self._transposed: set[str] = set()  # those of them that are not plain convolutions
        biased = [key for key, stem in weights.items() if _length(state, f"{stem}.bias") is not None]
        self._matrices_have_biases = any(state[key].ndim == 2 for key in biased)
        # What some weights of the file show to be swapped may be so in those whose two widths are the same.
        self._swapped = {
            tuple(state[key].shape[2:])
            for key in biased
            if state[key].shape[0] != _length(state, f"{weights[key]}.bias") == state[key].shape[1]
        }
        stems = list(dict.fromkeys(_stem(key) for key in state))
        self._next_stem = dict(zip(stems, [*stems[1:], ""], strict=False))

    def reason(self, key: str) -> str | None:
        """The reason why `key` is not the weight of a layer; None if it is."""
        reason = self._told(key)
        if key in self._place:
            K, C = self._state[key].shape[:2]
            if reason is not None and K != C:
                self._transposed.add(key)
            self._out[key] = C if key in self._transposed else K
        return reason

    def _told(self, key: str) -> str | None:
        tensor = self._state[key]
        if ".parametrizations." in f".{key}" or _in_parts(self._state, key):
            return "a part of a reparametrised weight whose rule the file does not name"
        if tensor.ndim not in (2, 4):
            return f"{tensor.ndim} axes"
        if key in self._masked:
            return self._by_bias_alone(key)
        if not self._as_in_torch:
            return self._by_name_alone(key)
        if not _is_weight(key):
            return "not called weight, as those of Conv2d and Linear are"
        bias = self._state.get(f"{_stem(key)}.bias".lstrip("."))
        if bias is not None and bias.ndim > 1:
            return "its bias has more than one axis: a norm or a table"
        if bias is None and _is_constant(tensor):
            return "a table of constants"
        return self._not_linear(key) if tensor.ndim == 2 else self._not_convolution(key)

    def _not_linear(self, key: str) -> str | None:
        outputs, inputs = self._state[key].shape
        bias = _length(self._state, f"{_stem(key)}.bias".lstrip("."))
        if bias is not None:
            return self._by_bias(bias, outputs, inputs, ())
        words = _words(key)
        if words and _TABLE.fullmatch(words[-1]):
            return f"called {words[-1]!r} and without a bias: an embedding or a table"
        if words and _LINEAR.fullmatch(words[-1]):
            return None
        # Where other layers have a bias, one without is likely something else.
        like_a_table = any(map(_TABLE.fullmatch, words)) or _looks_embedded(self._state[key])
        if self._matrices_have_biases or like_a_table:
            return _EMBEDDING_OR_LINEAR
        return None

    def _not_convolution(self, key: str) -> str | None:
        K, C, R, S = self._state[key].shape
        bias = _length(self._state, f"{_stem(key)}.bias".lstrip("."))
        even = R % 2 == 0 or S % 2 == 0
        if C == 1 < K and even and key != self._stem_weight and bias != C:  # a depthwise one of either kind
            return _TRANSPOSED_OR_NOT
        if bias is not None and K != C:
            return self._by_bias(bias, K, C, (R, S))
        named = bool(_TRANSPOSED.search("_".join(_words(key, digits=True))))
        if K == C:
            return _TRANSPOSED_OR_NOT if named or even or (R, S) in self._swapped else None
        plain, transposed = self._votes(key)
        if R == S == 1 or (plain and not transposed):
            return None
        if transposed and not plain:
            return "its neighbours have the widths of a transposed convolution" if named or even else _TRANSPOSED_OR_NOT
        if not (named or even):
            return None
        first = key == self._stem_weight and C <= 4
        return None if first and not named else _TRANSPOSED_OR_NOT

    def _by_name_alone(self, key: str) -> str | None:
        """Judge a tensor in a file of other people's names (`w1`, `kernel`), where these say little."""
        words = _words(f"{key}.weight")
        if words and _TABLE.fullmatch(words[-1]):
            return f"called {words[-1]!r}: an embedding or a table"
        if _is_constant(self._state[key]):
            return "a table of constants"
        if self._state[key].ndim == 4 and _TRANSPOSED.search("_".join(_words(f"{key}.weight", digits=True))):
            return _TRANSPOSED_OR_NOT
        return None

    def _by_bias_alone(self, key: str) -> str | None:
        shape = self._state[key].shape
        bias = _length(self._state, f"{_stem(key)}.bias".lstrip(".")) if _is_weight(key) else None
        if bias is None or bias == shape[0]:
            return None
        return self._by_bias(bias, shape[0], shape[1], tuple(shape[2:]))

    def _by_bias(self, bias: int, outputs: int, inputs: int, window: tuple[int, ...]) -> str | None:
        """The verdict of a bias of so many entries."""
        if bias == outputs:
            doubtful = outputs == inputs and window in self._swapped
            return f"{UNCLEAR} which axis is that of the outputs" if doubtful else None
        if bias % inputs == 0:
            what = "a transposed convolution" if window else "a matrix with swapped axes"
            return f"its bias counts along its second axis: {what}"
        return f"{UNCLEAR} what it is: its bias has {bias} entries, it has {outputs} rows"

    def _votes(self, key: str) -> tuple[int, int]:
        """The numbers of neighbours that have the widths of a convolution and those of a transposed one.

        Neighbours are the norm behind it, the maps before and after it in the file.
        """
        K, C, R, S = self._state[key].shape
        even = R % 2 == 0 or S % 2 == 0
        votes = []
        norm = self._norm_behind(key)
        if norm is not None:
            votes.append((norm == K, norm == C))
        i = self._place[key]
        if i + 1 < len(self._maps):
            following = self._state[self._maps[i + 1]].shape
            reads = following[0] if following[1] == 1 else following[1]
            votes.append((reads == K, following[0] == C and reads != K))
        if i:
            before = self._out[self._maps[i - 1]]
            depthwise = C == 1 and before == K and not even and bool(votes)
            grouped = K % C == 0 and not even and self._maps[i - 1] not in self._transposed
            votes.append((before == C or depthwise, before == K != C and not grouped))
        return sum(a for a, _ in votes), sum(b for _, b in votes)

    def _norm_behind(self, key: str) -> int | None:
        """The channels of the norm that bears the convolution's name, or comes next in the file."""
        stem = _stem(key)
        head, _, last = stem.rpartition(".")
        called = [re.sub(r"(de|t)?conv", norm, last) for norm in ("bn", "norm")] if "conv" in last else []
        places = [f"{head}.{name}".lstrip(".") for name in called] + [self._next_stem.get(stem, "")]
        for place in places:
            weight = _length(self._state, f"{place}.weight")
            length = _length(self._state, f"{place}.running_mean")
            if length is not None or weight is not None:
                return length if length is not None else weight
        return None


def _is_weight(key: str) -> bool:
    return key == "weight" or key.endswith(".weight")


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _length(state: Mapping[str, Tensor], key: str) -> int | None:
    """The length of a vector; None where there is no vector."""
    tensor = state.get(key)
    return len(tensor) if tensor is not None and tensor.ndim == 1 else None


def _words(key: str, *, digits: bool = False) -> list[str]:
    """The words of a module's own name; of a numbered one's, those of what it is a part of."""
    parts = [part for part in _stem(key).split(".") if not part.isdigit()]
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", parts[-1] if parts else "").lower()
    words = [word if digits else word.strip("0123456789") for word in re.split(r"[^a-z0-9]+", name)]
    return [word for word in words if word]


def _in_parts(state: Mapping[str, Tensor], key: str) -> bool:
    """Whether a tensor is a part of a weight that weight_norm, spectral_norm or prune computes."""
    for ending, others in (("_g", ("_v",)), ("_v", ("_g", "_orig")), ("_orig", ("_v", "_u", "_mask"))):
        if key.endswith(ending) and any(key.removesuffix(ending) + other in state for other in others):
            return True
    return False


def _is_constant(tensor: Tensor) -> bool:
    """Whether it holds whole numbers of many kinds, or the same filter for all channels; one value alone says nothing.

    A few entries are looked at first, since most tensors can be told by these.
    """
    few = tensor.detach().reshape(-1)[:4096].float()
    if bool((few == few.round()).all()) and bool((few.abs() > 1).any()):
        every = tensor.detach().float()
        return bool((every == every.round()).all())
    if tensor.ndim == 4 and tensor.shape[0] * tensor.shape[1] > 1 and tensor.shape[2] * tensor.shape[3] > 1:
        window = tensor[0, 0].float()
        if bool((window == window[0, 0]).all()) or not torch.equal(tensor[-1, -1].float(), window):
            return False
        return bool((tensor.float() == window).all())
    return False


def _looks_embedded(matrix: Tensor) -> bool:
    """Whether its entries are as large as those that embeddings begin with."""
    if matrix.shape[1] < _WIDE:
        return False
    return float(matrix[:256].float().square().mean().sqrt()) > _EMBEDDING_RMS
