"""The model: a vision tower, a projector and a language model, with the parameter names of stock transformers.

What differs from the stock class is how it runs, not what it computes: the tower stops at the layer whose output is
used, a frozen tower builds no graph, and features can be given instead of pixels. Joining two pretrained halves is in
`recipes/build.py`.
"""

import copy

import torch
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import TransformersKwargs, is_torchdynamo_compiling
from transformers.utils.generic import can_return_tuple

from .attention import ROW_INPUTS, tree_inputs
from .configuration_llava import LlavaConfig, check_feature_layers
from .image_tokens import PromptImages, check_no_image_tokens, check_one_form, splice, uncached_prompt
from .tower import select_features, tower_grad_mode, tower_hidden_states


# Seen from the root of the model: `LlavaModel`, and `LlavaForConditionalGeneration` around it.
NOT_QUANTIZED = [
    "vision_tower",
    "multi_modal_projector",
    "lm_head",
    "model.vision_tower",
    "model.multi_modal_projector",
]


class IdentityLinear(nn.Linear):
    """Second layer of a `linear` projector: the stock class wants its weights (identity, zero bias).

    It runs, at a twelfth of the cost of a language model layer, so that a LoRA merged into it counts; and detached, so
    that it stays the identity when a recipe or PEFT's `modules_to_save` makes the whole projector trainable.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.detach()
        return nn.functional.linear(hidden_states, self.weight.detach(), bias)


class LlavaMultiModalProjector(nn.Module):
    def __init__(self, config: LlavaConfig):
        super().__init__()
        layers = config.vision_feature_layer
        vision_width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
        text_width = config.text_config.hidden_size
        bias = config.multimodal_projector_bias

        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        if config.projector_type == "linear":
            self.linear_2 = IdentityLinear(text_width, text_width, bias=bias).requires_grad_(False)
        else:
            self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        dtype = self.linear_1.weight.dtype
        if dtype.is_floating_point:  # cached features may have another; a quantizer's packed weight says nothing
            image_features = image_features.to(dtype)
        return self.linear_2(self.act(self.linear_1(image_features)))


class LlavaPreTrainedModel(PreTrainedModel):
    config: LlavaConfig
    config_class = LlavaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, IdentityLinear):
            init.eye_(module.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, quantization_config=None, **kwargs):
        if isinstance(quantization_config, dict):
            quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
        if isinstance(quantization_config, BitsAndBytesConfig) and quantization_config.llm_int8_skip_modules is None:
            # bitsandbytes packs every linear layer it is not told to leave alone.
            quantization_config = copy.deepcopy(quantization_config)
            quantization_config.llm_int8_skip_modules = NOT_QUANTIZED
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *args, quantization_config=quantization_config, **kwargs
        )
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        for layer in model.modules():
            if isinstance(layer, IdentityLinear):
                layer.requires_grad_(False)  # loading makes every parameter trainable
                cls._check_identity(layer, pretrained_model_name_or_path)
        return loaded

    @staticmethod
    def _check_identity(layer: IdentityLinear, name):
        weight, bias = layer.weight, layer.bias
        if weight.is_meta or weight.shape != (layer.out_features, layer.in_features):
            return  # on another device, disk or rank (ZeRO-3 leaves an empty tensor here)
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        if not torch.equal(weight, identity) or (bias is not None and bias.any()):
            raise ValueError(
                f"`{name}` says `projector_type: linear`, but the second layer of its projector is not the identity: "
                "something has trained it. Set `projector_type` to `mlp` in its config.json; `projector_hidden_act: "
                "linear` may stay, the function is then the one that was trained."
            )


class LlavaModel(LlavaPreTrainedModel):
    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Everything the tower gives, with the projected features of each image as `pooler_output`, as in stock.

        This runs the whole tower. `forward` and `generate` use `get_vision_features`, which runs what is needed.
        """
        layers, strategy = self._feature_choice(vision_feature_layer, vision_feature_select_strategy)
        kwargs["output_hidden_states"] = kwargs.get("output_hidden_states") or layers
        with tower_grad_mode(self.vision_tower, pixel_values):
            outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        features = select_features([outputs.hidden_states[layer] for layer in layers], strategy)
        outputs.pooler_output = list(self.multi_modal_projector(features))
        return outputs

    def get_vision_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
    ) -> torch.Tensor:
        """The tower's features before the projector, (images, image tokens, width): what `image_features` takes."""
        layers, strategy = self._feature_choice(vision_feature_layer, vision_feature_select_strategy)
        with tower_grad_mode(self.vision_tower, pixel_values):
            hidden_states = tower_hidden_states(self.vision_tower, pixel_values, layers)
        return select_features(hidden_states, strategy)

    def _feature_choice(self, layers: int | list[int] | None, strategy: str | None) -> tuple[list[int], str]:
        layers = self.config.vision_feature_layer if layers is None else layers
        strategy = self.config.vision_feature_select_strategy if strategy is None else strategy
        if strategy not in ("default", "full"):
            raise ValueError(f"`vision_feature_select_strategy` is `{strategy}`. Choose `default` or `full`.")
        layers = [layers] if isinstance(layers, int) else list(layers)
        check_feature_layers(layers, self.config.vision_config.num_hidden_layers)
        return layers, strategy

    def _image_places(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Where the image tokens are, (batch, seq)."""
        if input_ids is not None:
            return (input_ids == self.config.image_token_id).to(inputs_embeds.device)
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def _join_other_ranks(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Runs a black picture for nothing, on a rank whose batch has none: the others wait for it in their tower."""
        height = width = self.config.vision_config.image_size
        black = inputs_embeds.new_zeros(1, self.config.vision_config.num_channels, height, width)
        return inputs_embeds + self.multi_modal_projector(self.get_vision_features(black)).sum() * 0

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaModelOutputWithPast:
        """
        As stock, and for training what the collator lays out: rows of trees in one of the forms of `attention.py`, and
        `keep`, the places in the flattened rows that predict a supervised token, which alone are returned.
        """
        if image_sizes is not None:
            raise ValueError(
                "Got `image_sizes`, which is for towers with images of varying size (Pixtral); here every image has "
                "the size of the tower. Leave it out, or load such a checkpoint with stock transformers."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both or neither of `input_ids` and `inputs_embeds`. Pass exactly one of them.")
        projected = (mm_encoder_outputs or {}).get("image")
        check_one_form(pixel_values, image_features, projected)

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        if pixel_values is not None:
            image_features = self.get_vision_features(
                pixel_values,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
            )
        # `generate` has looked at the prompt; image tokens after it are what the model said or guessed.
        in_generate = past_key_values is not None or mm_encoder_outputs is not None
        image_embeds = None
        if image_features is not None:
            image_embeds = self.multi_modal_projector(image_features)
        elif projected is not None:
            image_embeds = torch.stack(list(projected.pooler_output))

        if image_embeds is not None:
            is_image = self._image_places(input_ids, inputs_embeds)
            if isinstance(projected, PromptImages):
                is_image = projected.in_prompt(is_image)
            inputs_embeds = splice(inputs_embeds, is_image, image_embeds, whole=projected is None)
        elif input_ids is not None and not in_generate and not is_torchdynamo_compiling():
            check_no_image_tokens(input_ids, self.config.image_token_id)
            if torch.distributed.is_initialized():
                inputs_embeds = self._join_other_ranks(inputs_embeds)

        rows = {name: kwargs.pop(name) for name in ROW_INPUTS if name in kwargs}
        if rows:
            text_config = self.config.get_text_config()
            kwargs |= tree_inputs(text_config, rows, position_ids, inputs_embeds.dtype)
            attention_mask, kwargs["use_cache"] = kwargs.pop("attention_mask"), False
        keep = kwargs.pop("keep", None)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        last_hidden_state = outputs.last_hidden_state
        if keep is not None:
            last_hidden_state = last_hidden_state.flatten(0, 1)[keep][None]  # (1, supervised, hidden)
        return LlavaModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=None if image_embeds is None else image_embeds.flatten(0, 1),
        )


class LlavaForConditionalGeneration(LlavaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.model = LlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, *args, **kwargs) -> tuple | BaseModelOutputWithPooling:
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaCausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            image_sizes=image_sizes,
            mm_encoder_outputs=mm_encoder_outputs,
            image_features=image_features,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ):
        """`GenerationMixin.generate`, with the images encoded once before it, by the short way through the tower."""
        images = (mm_encoder_outputs or {}).get("image")
        check_one_form(pixel_values, image_features, images)
        options = {k: kwargs.pop(k, None) for k in ("vision_feature_layer", "vision_feature_select_strategy")}
        if pixel_values is not None:
            image_features = self.model.get_vision_features(pixel_values, **options)
        if image_features is not None:
            images = PromptImages(pooler_output=list(self.model.multi_modal_projector(image_features)))

        prompt = uncached_prompt(inputs, **kwargs)
        if prompt is not None and images is None:
            check_no_image_tokens(prompt, self.config.image_token_id)
        elif prompt is not None and getattr(images, "num_image_tokens", None) is None:
            num_image_tokens = (prompt == self.config.image_token_id).sum(-1)
            images = PromptImages(pooler_output=images.pooler_output, num_image_tokens=num_image_tokens)
        # In this form images, unlike pixels, are expanded right for beams when samples have different numbers of them.
        images = {} if images is None else {"image": images}
        return super().generate(inputs, *args, mm_encoder_outputs=images, **kwargs)


__all__ = ["LlavaForConditionalGeneration", "LlavaModel", "LlavaPreTrainedModel"]
