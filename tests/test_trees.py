"""Rows of trees give every conversation the loss and the gradients it has alone in the stock model."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration as Stock

from modeling_llava.attention import varlen_attention
from modeling_llava.final_norm import expose_final_norm
from tests.tiny import image_ids, llava_model, pixels, text_config


# Trees: image numbers, prefix ids, branches as (ids, number of unsupervised ids at their start).
TREES = [
    ([0], [1, 9, *image_ids(), 17], [([20, 21, 22, 23], 1), ([30, 31], 0), ([40, 41, 42, 43, 44, 45], 3)]),
    ([1, 2], [1, *image_ids(2)], [([50, 51, 52], 0), ([53], 0)]),
    ([], [], [([1, 60, 61, 62, 63, 64, 65, 66, 67], 2)]),
    ([3], [], [([1, *image_ids(), 70, 71, 72], 6)]),
]
LANGUAGES = {
    "llama": {},
    "qwen2": {},
    "qwen2-mixed": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    "phi3": {},
}


def make_model(language: str):
    kind = language.split("-")[0]
    return llava_model(language=kind, text_config=text_config(kind, **LANGUAGES[language]))


def samples(trees):
    """Ids, targets of every place (-100 where unsupervised) and images of each conversation alone."""
    for images, prefix, branches in trees:
        for ids, unsupervised in branches:
            whole = prefix + ids
            first = len(prefix) + unsupervised
            yield whole, [-100] * first + whole[first:], images


def layout(rows, length):
    """The four tensors of each form, written out place by place."""
    ids, positions, end, keep, targets, segments, pixel_rows = [], [], [], [], [], [], []
    for number, trees in enumerate(rows):
        row_ids, row_positions, row_end = [], [], []
        for images, prefix, branches in trees:
            pixel_rows += images
            base = len(row_ids)
            tree_end = base + len(prefix) + sum(len(branch) for branch, _ in branches)
            row_ids += prefix
            row_positions += range(len(prefix))
            row_end += [tree_end] * len(prefix)
            if prefix:
                segments.append([number, base, base + len(prefix), 0, 0])
            for branch, unsupervised in branches:
                start = len(row_ids)
                before = [base + len(prefix) - 1] if prefix else [None]
                places = before + list(range(start, start + len(branch)))
                for i in range(max(unsupervised, 0 if prefix else 1), len(branch)):
                    keep.append(number * length + places[i])
                    targets.append(branch[i])
                row_ids += branch
                row_positions += range(len(prefix), len(prefix) + len(branch))
                row_end += [start + len(branch)] * len(branch)
                segments.append([number, start, start + len(branch), base, base + len(prefix)])
        padding = length - len(row_ids)
        row_end += range(len(row_ids) + 1, length + 1)
        ids.append(row_ids + [0] * padding)
        positions.append(row_positions + [0] * padding)
        end.append(row_end)
    batch = {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "keep": torch.tensor(keep),
        "pixel_values": pixels(4)[pixel_rows],
    }
    return batch, torch.tensor(end), torch.tensor(segments), torch.tensor(targets)


def alone(stock, trees):
    """Loss over all supervised tokens, and its gradients, conversation by conversation."""
    stock.zero_grad()
    total = 0.0
    num_targets = sum(label != -100 for _, labels, _ in samples(trees) for label in labels)
    for ids, labels, images in samples(trees):
        inputs = {"input_ids": torch.tensor([ids])} | ({"pixel_values": pixels(4)[images]} if images else {})
        logits = stock(**inputs, attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0]
        loss = cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum") / num_targets
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in stock.named_parameters() if p.grad is not None}


ROWS = {"one row": [TREES], "three padded rows": [TREES[:1], TREES[1:3], TREES[3:]]}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "tree_segments"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_loss_and_gradients_equal_stock_one_at_a_time(tmp_path, language, implementation, rows):
    model = make_model(language).train()
    model.model.vision_tower.requires_grad_(False)
    model.save_pretrained(tmp_path)
    stock = Stock.from_pretrained(tmp_path, attn_implementation="eager").train()
    stock.model.vision_tower.requires_grad_(False)
    expected, gradients = alone(stock, TREES)

    model.set_attn_implementation({"text_config": implementation})
    length = max(sum(len(p) + sum(len(b) for b, _ in bs) for _, p, bs in row) for row in ROWS[rows]) + 3
    batch, end, segments, targets = layout(ROWS[rows], length)
    form = {"segments": segments} if implementation == "tree_segments" else {"end": end}
    logits = model(**batch, **form).logits[0]
    loss = cross_entropy(logits, targets)
    loss.backward()
    assert abs(loss.item() - expected) < 2e-6
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == gradients.keys()
    for name in ours:
        assert torch.allclose(ours[name], gradients[name], atol=1e-6), name


def test_without_the_layout_conversations_would_see_each_other():
    """The test above can fail: positions alone do not keep the branches apart."""
    model = make_model("llama")
    batch, end, segments, targets = layout([TREES], 60)
    with torch.no_grad():
        right = model(**batch, end=end).logits
        wrong = model(**batch).logits
    assert (right - wrong).abs().max() > 1e-3


def test_generation_is_untouched_by_the_attention_of_rows():
    model = make_model("mistral")
    inputs = {"input_ids": torch.tensor([[1, 9, *image_ids(), 17, 18, 19]]), "pixel_values": pixels(1)}
    expected = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    model.set_attn_implementation({"text_config": "tree_segments"})
    assert torch.equal(model.generate(**inputs, max_new_tokens=10, do_sample=False), expected)


def test_gradient_checkpointing_changes_nothing():
    model = make_model("llama").train()
    model.model.vision_tower.requires_grad_(False)
    model.set_attn_implementation({"text_config": "tree_segments"})
    batch, _, segments, targets = layout([TREES], 60)

    def gradients():
        model.zero_grad()
        cross_entropy(model(**batch, segments=segments).logits[0], targets).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.equal(a, b)


def test_wrong_calls_are_told():
    model = make_model("llama")
    batch, end, segments, _ = layout([TREES], 60)
    with pytest.raises(ValueError, match="laid out for `tree_segments`, but the language model attends with `sdpa`"):
        model(**batch, segments=segments)
    batch.pop("position_ids")
    with pytest.raises(ValueError, match="Rows of trees came without `position_ids`"):
        model(**batch, end=end)


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["llama", "mistral"])
def test_varlen_equals_a_dense_mask_on_a_gpu(language):
    model = make_model(language).to("cuda", torch.bfloat16)
    batch, end, segments, _ = layout([TREES], 60)
    batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
    lengths, index = [], []
    for _, start, stop, prefix_start, prefix_stop in segments.tolist() + [[0, int(segments[-1, 2]), 60, 0, 0]]:
        keys = [*range(prefix_start, prefix_stop), *range(start, stop)]
        lengths.append((stop - start, len(keys)))
        index += keys
    cumulative = torch.tensor([(0, 0), *lengths], device="cuda").cumsum(0).int()
    form = {"cu_seq_q": cumulative[:, 0].contiguous(), "cu_seq_k": cumulative[:, 1].contiguous()}
    form |= {"kv_index": torch.tensor(index, device="cuda")}
    form |= {"max_q": max(q for q, _ in lengths), "max_k": max(k for _, k in lengths)}
    with torch.no_grad():
        dense = model(**batch, end=end.to("cuda")).logits
        model.set_attn_implementation({"text_config": "tree_varlen"})
        varlen = model(**batch, **form).logits
    assert (dense - varlen).abs().max() < 0.05 * dense.abs().max()


def test_varlen_without_rows_is_plain_attention():
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    out, _ = varlen_attention(module, query, key, key, None, scaling=0.3)
    assert out.shape == (1, 5, 4, 8)


def test_the_final_norm_is_exposed_without_a_name_of_its_own(tmp_path):
    model = make_model("llama")
    names = set(model.state_dict())
    expose_final_norm(model.model)
    assert model.model.final_norm is model.model.language_model.norm
    assert list(dict(model.model.named_children()))[-1] == "final_norm"
    assert set(model.state_dict()) == names
    model.load_state_dict(make_model("llama").state_dict())
    model.save_pretrained(tmp_path)
    _, info = Stock.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
