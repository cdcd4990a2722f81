"""Published checkpoint layouts in, trained modules out: weights of other projects, ``.safetensors`` files, diffusers pipelines."""

from .dit import load_dit, read_dit
from .folder import FORMS, check_form, write_pipeline, write_safetensors
from .weights import fill, read_weights

__all__ = ["FORMS", "check_form", "fill", "load_dit", "read_dit", "read_weights", "write_pipeline", "write_safetensors"]
