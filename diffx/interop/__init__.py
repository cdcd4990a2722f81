"""Published checkpoint layouts in, trained modules out: weights of other projects, ``.safetensors`` files, diffusers pipelines."""

from .dit import load_dit, read_dit
from .folder import FORMS, check_form, write_pipeline, write_safetensors
from .stock import stock_of, write_stock
from .tokens import load_tokens
from .unets import load_unet, read_unet
from .weights import fill, read_weights

__all__ = [
    "FORMS", "check_form", "fill", "load_dit", "load_tokens", "load_unet", "read_dit", "read_unet", "read_weights", "stock_of",
    "write_pipeline", "write_safetensors", "write_stock",
]  # fmt: skip
