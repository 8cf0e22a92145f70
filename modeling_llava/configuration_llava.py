"""The configuration: the stock one, the name of the projector, and checks that name the field at fault."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig as StockLlavaConfig


# Towers whose first token is a patch: the `default` strategy, which drops the first token, would drop a patch.
TOWERS_WITHOUT_CLASS_TOKEN = ("siglip_vision_model",)


@strict
class LlavaConfig(StockLlavaConfig):
    r"""
    Configuration of a LLaVA, saved in the format of the stock [`~transformers.LlavaConfig`].

    Args:
        projector_type (`"linear"` or `"mlp"`, *optional*, defaults to `"mlp"`):
            `"linear"` is the single matrix of the first paper, `"mlp"` the two layers of LLaVA-1.5. A linear projector
            is stored in the shape of the stock one, with `projector_hidden_act="linear"` and an identity as its second
            layer, so that stock transformers computes the same function.

    All other arguments are those of the stock class.
    """

    projector_type: Literal["linear", "mlp"] = "mlp"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.projector_type == "linear":
            self.projector_hidden_act = "linear"
        self._check_tower()

    def _check_tower(self):
        tower = self.vision_config.model_type
        if tower == "siglip2_vision_model":
            raise ValueError(
                "`vision_config` is a `siglip2_vision_model` (NaFlex: patches of varying number and shape), wanted a "
                "tower with a fixed image size. Use a fixed-resolution SigLIP2 checkpoint, such as "
                "`google/siglip2-so400m-patch14-384`, whose vision config is a `siglip_vision_model`."
            )
        if tower in TOWERS_WITHOUT_CLASS_TOKEN and self.vision_feature_select_strategy == "default":
            raise ValueError(
                f"`vision_feature_select_strategy` is `default`, which drops the class token, but a `{tower}` has "
                "none: its first patch would be lost. Set `vision_feature_select_strategy` to `full`."
            )

        layers = self.vision_feature_layer
        check_feature_layers([layers] if isinstance(layers, int) else layers, self.vision_config.num_hidden_layers)


def check_feature_layers(layers: list[int], num_layers: int):
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(
                f"`vision_feature_layer` is {layer}, but the vision tower has {num_layers} layers. Choose between "
                f"{-num_layers - 1} and {num_layers}; -2 is the output before the last layer, -1 of the last layer."
            )


__all__ = ["LlavaConfig"]
