"""Registry of networks, built from a name, `timm:NAME` or `package.module:callable`."""

from starfire_cli.models._normalized import Normalized
from starfire_cli.models.build import build_model, model_names
from starfire_cli.models.macs import count_macs, effective_macs, probe

__all__ = ["Normalized", "build_model", "count_macs", "effective_macs", "model_names", "probe"]
