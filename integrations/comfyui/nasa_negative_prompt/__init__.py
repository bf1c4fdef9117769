"""A ComfyUI custom node: link or copy this folder into `ComfyUI/custom_nodes`."""

from .node import NASANegativePrompt

NODE_CLASS_MAPPINGS = {"NASANegativePrompt": NASANegativePrompt}
NODE_DISPLAY_NAME_MAPPINGS = {"NASANegativePrompt": "NASA negative prompt"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
