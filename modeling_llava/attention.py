"""Attention over rows of trees: `[prefix] -> branch, branch, ...`, several trees laid end to end in one row.

Each token sees what came before it in its own conversation: the shared prefix and its own branch. The collator writes
this down in one of three forms, and each has its own attention here:

- `end` (rows, length): one past the last token that may look back at a token. Becomes a dense mask or a BlockMask.
- `segments` (segments, 5): row, start, end, prefix start, prefix end. They tile each row up to its padding, a prefix
  is itself a segment. One small attention each: fast on CPU.
- `cu_seq_q`, `cu_seq_k`, `kv_index`, `max_q`, `max_k`: the same segments, flattened, with the keys of each gathered:
  one variable-length flash attention on CUDA.

The names `tree_segments` and `tree_varlen` are registered as attention implementations of transformers. Without a row
of trees (generation, evaluation) both are plain sdpa.
"""

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS


# The keyword arguments that lay out rows of trees; one form at a time.
ROW_INPUTS = ("end", "segments", "cu_seq_q", "cu_seq_k", "kv_index", "max_q", "max_k")


def tree_inputs(
    text_config: PreTrainedConfig, rows: dict[str, Any], position_ids: torch.Tensor | None, dtype: torch.dtype
) -> dict[str, Any]:
    """What the language model is called with for a row of trees: an attention mask, and the layout for the
    attention.
    """
    if position_ids is None:
        raise ValueError(
            "Rows of trees came without `position_ids`: a branch continues the positions of its prefix. Pass those of "
            "the collator."
        )
    implementation = text_config._attn_implementation
    if "end" in rows:
        return {"attention_mask": tree_mask(text_config, rows["end"], position_ids, dtype)}
    wanted = "tree_segments" if "segments" in rows else "tree_varlen"
    if implementation != wanted:
        raise ValueError(
            f"The rows are laid out for `{wanted}`, but the language model attends with `{implementation}`. Call "
            f'`model.set_attn_implementation({{"text_config": "{wanted}"}})`, or let the collator write `end`.'
        )
    layout = dict(rows)
    if "segments" in rows:
        layout["segments"] = rows["segments"].tolist()
    # A 4-D mask is taken as it is, so transformers builds none of its own; this one is never read.
    unread = torch.zeros(1, 1, 1, 1, device=position_ids.device)
    types = set(getattr(text_config, "layer_types", None) or ())
    return {"attention_mask": {name: unread for name in types} if types else unread, **layout}


def tree_mask(text_config: PreTrainedConfig, end: torch.Tensor, position_ids: torch.Tensor, dtype: torch.dtype):
    """The mask of `end` in the form that the attention implementation takes; a dict where layers differ in theirs."""
    rows, length = end.shape

    def build(window: int | None):
        def visible(row, head, query, key):
            seen = (key <= query) & (query < end[row, key])
            # A window counts positions in the conversation, not places in the row.
            return seen if window is None else seen & (position_ids[row, query] - position_ids[row, key] < window)

        return ALL_MASK_ATTENTION_FUNCTIONS[text_config._attn_implementation](
            batch_size=rows,
            q_length=length,
            kv_length=length,
            q_offset=0,
            kv_offset=0,
            mask_function=visible,
            attention_mask=None,
            allow_is_causal_skip=False,
            dtype=dtype,
            config=text_config,
            use_vmap=False,
            device=end.device,
        )

    window = getattr(text_config, "sliding_window", None)
    types = set(getattr(text_config, "layer_types", None) or ())
    if types:
        return {name: build(window if name == "sliding_attention" else None) for name in types}
    return build(window)


def segments_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: list[list[int]] | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """(rows, heads, length, width) in, (rows, length, heads, width) out; places of no segment (padding) give zeros."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    # Cut once: the gradient of a cut row is one concatenation, that of a slice would be a row of zeros for each.
    lengths = [[] for _ in range(query.shape[0])]
    for row, start, end, _, _ in segments:
        lengths[row].append(end - start)
    for of_row in lengths:
        of_row.append(query.shape[2] - sum(of_row))  # padding
    cut = [[one.split(sizes, dim=1) for one, sizes in zip(x, lengths, strict=True)] for x in (query, key, value)]

    pieces: list[list[torch.Tensor]] = [[] for _ in lengths]
    numbers: dict[tuple[int, int], int] = {}  # of a segment in its row, by where it starts
    for row, start, end, prefix_start, prefix_end in segments:
        number = numbers[row, start] = len(pieces[row])
        num_prefix = max(prefix_end - prefix_start, 0)
        q, k, v = (x[row][number][None] for x in cut)
        if num_prefix:
            prefix = numbers[row, prefix_start]
            k, v = (torch.cat([x[row][prefix], x[row][number]], dim=1)[None] for x in cut[1:])
        windowed = sliding_window is not None and num_prefix + end - start > sliding_window
        if num_prefix or windowed:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(num_prefix)
            if windowed:
                mask = mask.triu(num_prefix - sliding_window + 1)
            pieces[row].append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **options))
        else:
            pieces[row].append(scaled_dot_product_attention(q, k, v, is_causal=True, **options))

    heads, width = query.shape[1], value.shape[3]
    rows = [
        torch.cat([*row, query.new_zeros(1, heads, sizes[-1], width)], dim=2)
        for row, sizes in zip(pieces, lengths, strict=True)
    ]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_q: torch.Tensor | None = None,
    cu_seq_k: torch.Tensor | None = None,
    kv_index: torch.Tensor | None = None,
    max_q: int = 0,
    max_k: int = 0,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """As `segments_attention`, by one flash attention over all segments. It is causal to the bottom right: query i of
    a branch sees the whole prefix and the first i tokens of the branch."""
    if cu_seq_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise ValueError(f"`attention_dropout` is {dropout}, which variable-length attention has not. Set it to 0.")
    rows, heads, length, width = query.shape
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # (rows * length, heads, width)
    out = varlen_attn(
        flat[0],
        flat[1][kv_index],
        flat[2][kv_index],
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=heads != key.shape[1],
    )
    return out.view(rows, length, heads, width), None


AttentionInterface.register("tree_segments", segments_attention)
AttentionInterface.register("tree_varlen", varlen_attention)
for _name in ("tree_segments", "tree_varlen"):
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
