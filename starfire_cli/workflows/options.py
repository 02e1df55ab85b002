"""Options that several requests share, so that they mean and say the same everywhere."""

from __future__ import annotations

from starfire_cli.numbers import parse_mean, parse_std
from starfire_cli.options import Option
from starfire_cli.registry import Family

DATA_PANEL = "Data"
PRUNING_PANEL = "Pruning"
RUNTIME_PANEL = "Runtime"
OUTPUT_PANEL = "Output"

# Read from the folders: importing the families themselves would import torch.
_METHODS = Family[object]("pruning method", "starfire_cli.pruning.methods")
_TRAINING, _ONESHOT = (", ".join(_METHODS.taking("conv", use).names()) for use in ("network", "oneshot"))
CHANNEL_METHODS = tuple(_METHODS.taking("channels").names())
_LINEAR = ", ".join(_METHODS.taking("linear").names())

CHECKPOINT = Option(
    argument=True,
    metavar="[CHECKPOINT]",
    help="A checkpoint of any kind, or a run folder (its best checkpoint). Default: the newest run.",
)
MODEL = Option(
    metavar="SPEC",
    help="The network, where the file does not say: resnet50, timm:NAME, package.module:callable.",
)
WEIGHTS = Option(
    metavar="NAME",
    help="Of a file with several networks: model (what was trained), ema (its average), or a name in the file.",
)

# Data
DATA = Option(
    metavar="SPEC",
    panel=DATA_PANEL,
    help="A path whose layout is recognised, a name (digits) or NAME:PATH. Default: as the checkpoint says.",
)
MEAN = Option(
    metavar="R,G,B",
    panel=DATA_PANEL,
    help="What the network's input was normalised by, in [0, 1]; one number counts for all three.",
    parse=parse_mean,
    stored="changed",
)
STD = Option(metavar="R,G,B", panel=DATA_PANEL, help="Likewise.", parse=parse_std, stored="changed")
IMAGE_SIZE = Option(
    metavar="PX", panel=DATA_PANEL, low=1, high=1 << 14, range="pixels a side, 1 to 16384", help="Side of the images."
)
BATCH_SIZE = Option(short="-b", panel=DATA_PANEL, low=1, range="at least 1", help="Images at a time.")
WORKERS = Option(
    short="-j",
    panel=DATA_PANEL,
    low=0,
    high=1024,
    range="processes, 0 to 1024",
    help="Processes that read and decode images.",
)
SKIP_CORRUPT = Option(panel=DATA_PANEL, help="Leave out images that cannot be read, and count them.")

# Pruning
METHOD = Option(
    metavar="SPEC",
    panel=PRUNING_PANEL,
    help=f"How it is pruned: {_TRAINING}; with options as in intra:share=0.4.",
)
ONESHOT_METHOD = Option(
    metavar="SPEC",
    panel=PRUNING_PANEL,
    help=f"How it is pruned: {_ONESHOT}; by whole channels of a trained network: {', '.join(CHANNEL_METHODS)}; with "
    "options as in intra:share=0.4.",
)
FC = Option(
    metavar="SPEC",
    panel=PRUNING_PANEL,
    help=f"How linear layers are pruned: {_LINEAR}; with options as in block:n=2. Where --method takes the whole "
    "network, that or dense.",
)
MAX_NONZERO = Option(
    metavar="N",
    panel=PRUNING_PANEL,
    help="At most N weights stay in a 3x3 window; the same as max_nonzero=N in --method.",
)
KEEP_DENSE = Option(
    metavar="GLOB", panel=PRUNING_PANEL, help="Leave layers whose name matches unpruned; may be repeated."
)
ONLY = Option(metavar="GLOB", panel=PRUNING_PANEL, help="Prune only layers whose name matches; may be repeated.")

# Where and how
DEVICE = Option(metavar="NAME", panel=RUNTIME_PANEL, help="auto, cpu, cuda, cuda:1, mps, ...")
SEED = Option(panel=RUNTIME_PANEL, help="Of everything random.")

# What comes out
OUT = Option(short="-o", metavar="PATH", panel=OUTPUT_PANEL, help="Where to write.")
