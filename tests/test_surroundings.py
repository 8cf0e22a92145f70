"""What other libraries do to the model: Auto classes, accelerate, torch.compile, FSDP2, DDP, pickle."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers import LlavaConfig as StockConfig
from transformers import LlavaForConditionalGeneration as StockLlava
from transformers import LlavaModel as StockLlavaModel

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from tests import tiny
from tests.test_generation import generate
from tests.twins import assert_equal_functions, batch, blocks_of, count_calls, frozen, gradients, labels_of, models


# Auto classes


def test_auto_classes_give_ours(tmp_path):
    ours, stock = models()
    stock.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlavaConfig
    assert type(AutoConfig.for_model("llava")) is LlavaConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is LlavaModel
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(tmp_path)) is LlavaForConditionalGeneration
        assert type(auto.from_config(ours.config)) is LlavaForConditionalGeneration
        assert type(auto.from_config(stock.config)) is StockLlava
    assert type(StockLlava.from_pretrained(tmp_path)) is StockLlava
    assert type(StockLlavaModel.from_pretrained(tmp_path)) is StockLlavaModel
    assert type(StockConfig.from_pretrained(tmp_path)) is StockConfig


IN_ANOTHER_PROCESS = """
import sys
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration as Stock
folder, project = sys.argv[1:]
assert type(AutoModelForImageTextToText.from_pretrained(folder)) is Stock
sys.path.insert(0, project)
import modeling_llava
ours = AutoModelForImageTextToText.from_pretrained(folder)
assert type(ours) is modeling_llava.LlavaForConditionalGeneration, type(ours)
assert type(Stock.from_pretrained(folder)) is Stock
print("done")
"""


def test_importing_the_package_is_what_registers_it(tmp_path):
    models()[0].save_pretrained(tmp_path)
    project = Path(__file__).parent.parent
    command = [sys.executable, "-I", "-c", IN_ANOTHER_PROCESS, str(tmp_path), str(project)]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("done\n"), done.stderr


# copies


def test_pickle_and_deepcopy():
    for projector in ("linear", "mlp"):
        ours, _ = models(projector)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert_equal_functions(twin, ours)
            assert twin.config.to_dict() == ours.config.to_dict()
            flags, expected = ({k: p.requires_grad for k, p in m.named_parameters()} for m in (twin, ours))
            assert flags == expected


# accelerate


@pytest.mark.parametrize("split", ["nothing", "vision_tower", "language_model"])
@pytest.mark.parametrize("tower", tiny.TOWERS)
def test_weights_on_disk(tower, split, tmp_path):
    config = tiny.llava_config(tower, projector="linear")
    # SigLIP's pooling head, which no LLaVA uses, cannot be offloaded: it reads a weight of its child past any hook.
    config.vision_config.vision_use_head = False
    ours = tiny.randomize(LlavaForConditionalGeneration(config).eval())
    ours.save_pretrained(tmp_path / "model")

    kilobytes = sum(p.nbytes for p in ours.model.vision_tower.parameters()) / 1000
    kilobytes = {"nothing": 100, "vision_tower": 0.9 * kilobytes, "language_model": 75 + kilobytes}[split]
    placed = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": f"{int(kilobytes)}KB"},
        offload_folder=tmp_path / "offload",
    )
    places = placed.hf_device_map
    assert len({place for module, place in places.items() if split in module}) == (0 if split == "nothing" else 2)
    assert "disk" in places.values()

    num_tokens = tiny.NUM_PATCHES + {"dinov2_with_registers": 4}.get(tower, 0)
    inputs = {"input_ids": torch.tensor([[1, 9, *tiny.image_ids(1, num_tokens), 6]]), "pixel_values": tiny.pixels(1)}
    assert_equal_functions(placed, ours, inputs)
    assert torch.equal(generate(placed, inputs), generate(ours, inputs))


def test_weights_fetched_when_needed():
    """Every module is on the meta device but while it runs: nothing may read a weight from outside its module."""
    for projector in ("linear", "mlp"):
        ours = copy.deepcopy(models(projector)[0])
        cpu_offload(ours, execution_device="cpu")
        assert ours.model.vision_tower.embeddings.patch_embedding.weight.is_meta
        assert_equal_functions(ours, models(projector)[0])
        assert torch.equal(generate(ours, batch([2, 0, 1])), generate(models(projector)[0], batch([2, 0, 1])))


# torch.compile


@pytest.mark.parametrize(("train_tower", "has_captured"), [(True, False), (False, True)])
def test_no_graph_breaks(train_tower, has_captured):
    model = tiny.randomize(tiny.llava_model())
    if not train_tower:
        frozen(model)
    if has_captured:  # which leaves transformers' hooks on the tower's layers
        model.get_image_features(tiny.pixels(1))
    torch._dynamo.reset()
    compiled = torch.compile(model.model, fullgraph=True, backend="eager", dynamic=False)
    features = {"image_features": model.model.get_vision_features(tiny.pixels(3)).detach()}
    without_pixels = {key: value for key, value in batch([2, 0, 1]).items() if key != "pixel_values"}
    for inputs in (batch([2, 0, 1]), batch([0]), without_pixels | features):
        out = compiled(**inputs, use_cache=False).last_hidden_state
        assert torch.equal(out, model.model(**inputs, use_cache=False).last_hidden_state)
        assert out.requires_grad


def test_a_compiled_model_trains():
    model = frozen(copy.deepcopy(models()[0]))
    inputs = batch([1])
    expected = gradients(model, inputs)
    torch._dynamo.reset()
    model.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    for key, grad in gradients(model, inputs | {"use_cache": False}).items():
        assert (grad is None) == (expected[key] is None)
        assert grad is None or torch.allclose(grad, expected[key], atol=1e-6)


# distributed training, with one process


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model, mesh, **options):
    """As accelerate does: each layer by itself, and the rest with the root."""
    for layer in [*blocks_of(model), *model.model.language_model.layers]:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("train_tower", [True, False])
def test_fsdp2(projector, train_tower, process_group):
    plain = copy.deepcopy(models(projector)[0])
    plain = plain if train_tower else frozen(plain)
    sharded = shard(copy.deepcopy(plain), process_group)
    calls = count_calls(blocks_of(sharded))
    inputs = batch([2, 0, 1])
    expected = gradients(plain, inputs)
    for key, grad in gradients(sharded, inputs).items():
        assert (grad is None) == (expected[key] is None), key
        assert grad is None or torch.equal(grad.to_local(), expected[key]), key
    assert calls == [1, 1, 0]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_fsdp2_in_mixed_precision(projector, process_group):
    """Parameters are bfloat16 while they are used and float32 between: features follow the former."""
    model = copy.deepcopy(models(projector)[0])
    features = model.model.get_vision_features(tiny.pixels(3)).detach()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = shard(model, process_group, mp_policy=policy)
    inputs = batch([2, 0, 1])
    logits = model(**inputs).logits
    del inputs["pixel_values"]
    cached = model(**inputs, image_features=features).logits
    assert logits.dtype == cached.dtype == torch.bfloat16
    assert (logits - cached).abs().mean() < 0.1 * logits.abs().mean()


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_ddp_finds_every_trainable_parameter_used(projector, process_group):
    """Without `find_unused_parameters`, which would walk the graph in every step."""
    model = frozen(copy.deepcopy(models(projector)[0]))
    inputs = batch([2, 0, 1])
    expected = gradients(model, inputs)
    model.zero_grad()
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)
    for _ in range(2):  # the second step is the one that complains
        wrapped.zero_grad()
        wrapped(**inputs, labels=labels_of(inputs)).loss.backward()
    for key, parameter in model.named_parameters():
        grad = parameter.grad
        assert (grad is None) == (expected[key] is None) and (grad is None or torch.equal(grad, expected[key])), key
