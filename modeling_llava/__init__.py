"""Turns tensors into tensors: a LLaVA whose checkpoints are stock transformers checkpoints.

Importing this package registers the classes with the Auto classes, so that
`AutoModelForImageTextToText.from_pretrained` gives this implementation for every checkpoint of `model_type: "llava"`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from .configuration_llava import LlavaConfig
from .modeling_llava import LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel


AutoConfig.register("llava", LlavaConfig, exist_ok=True)
AutoModel.register(LlavaConfig, LlavaModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaConfig, LlavaForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(LlavaConfig, LlavaForConditionalGeneration, exist_ok=True)

# transformers renames the keys of older `llava-hf` checkpoints while loading, but for classes outside its own tree
# only when the renaming was registered from outside. These are its own rules, registered once more unchanged.
for _name in ("llava", "LlavaModel"):
    register_checkpoint_conversion_mapping(_name, get_checkpoint_conversion_mapping(_name), overwrite=True)

__all__ = ["LlavaConfig", "LlavaForConditionalGeneration", "LlavaModel", "LlavaPreTrainedModel"]
