"""Hidden states and LM heads of Hugging Face's models: together they give the model's own logits, without logits."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from kd_kernels.language_models import head_parameters, hidden_states

transformers = pytest.importorskip("transformers")

V = 61  # no other dimension is as large
SHAPE = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

# (scale, softcap) that the configuration asks for.
FAMILIES = {
    "llama": (SHAPE, 1, None),
    "qwen2": (SHAPE | {"tie_word_embeddings": True}, 1, None),
    "gpt2": (GPT, 1, None),
    "phi": (SHAPE, 1, None),  # its head has a bias
    "cohere": (SHAPE | {"logit_scale": 0.3}, 0.3, None),
    "cohere2": (SHAPE | {"logit_scale": 0.3}, 0.3, None),
    "granite": (SHAPE | {"logits_scaling": 8.0}, 1 / 8, None),
    "granitemoe": (SHAPE | {"logits_scaling": 3.0, "num_local_experts": 2, "num_experts_per_tok": 1}, 1 / 3, None),
    "hyperclovax": (SHAPE | {"logits_scaling": 3.0}, 3, None),
    "minicpm3": (SHAPE | MLA | {"dim_model_base": 8}, 1, None),
    "mpt": ({"vocab_size": V, "d_model": 32, "n_layers": 1, "n_heads": 4, "logit_scale": 0.3}, 1, None),
    "gemma2": (SHAPE | {"final_logit_softcapping": 2.0}, 1, 2),
    "gemma3_text": (SHAPE | {"final_logit_softcapping": 2.0, "use_bidirectional_attention": False}, 1, 2),
    "nanochat": (SHAPE | {"final_logit_softcapping": 2.0}, 1, 2),
    "recurrent_gemma": (SHAPE | {"num_hidden_layers": 3, "lru_width": 32, "logits_soft_cap": 2.0}, 1, 2),
    "falcon_h1": (SHAPE | MAMBA | {"lm_head_multiplier": 0.4}, 0.4, None),
    "inkling_text": (SHAPE | {"unpadded_vocab_size": 50}, 1, None),
}


def build(model_type: str, **changes):
    shape = FAMILIES[model_type][0] | changes
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **shape))
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_()  # large enough to meet the softcaps
    return model.eval()


@pytest.fixture
def granite():
    return build("granite")


def tokens() -> torch.Tensor:
    return torch.randint(3, 50, (2, 7))


def logits_of(hidden, weight, bias, scale, softcap):
    x = F.linear(hidden, weight, bias) * scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def hidden_of(model, ids):
    with hidden_states(model):
        return model(input_ids=ids, use_cache=False).logits


class NoVocabulary(TorchDispatchMode):
    """Fails where a tensor that the vocabulary is a dimension of is made."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            assert V not in out.shape, func
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_head_give_the_models_logits(family):
    _, scale, softcap = FAMILIES[family]
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    model = build(family)
    ids = tokens()
    expected = model(input_ids=ids, use_cache=False).logits
    parameters = head_parameters(model)
    assert parameters[2:] == (pytest.approx(scale), softcap)
    with NoVocabulary():
        hidden = hidden_of(model, ids)
    assert hidden.shape == (2, 7, 32)
    torch.testing.assert_close(logits_of(hidden, *parameters), expected)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)


def test_gradients_are_those_of_logits(granite):
    ids, cotangent = tokens(), torch.randn(2, 7, V)
    granite(input_ids=ids).logits.backward(cotangent)
    expected = {name: p.grad.clone() for name, p in granite.named_parameters()}
    granite.zero_grad()
    logits_of(hidden_of(granite, ids), *head_parameters(granite)).backward(cotangent)
    torch.testing.assert_close({name: p.grad for name, p in granite.named_parameters()}, expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of a name that older versions need
def test_activation_checkpointing(granite):
    ids, cotangent = tokens(), torch.randn(2, 7, 32)
    hidden_of(granite, ids).backward(cotangent)
    expected = granite.model.layers[0].mlp.up_proj.weight.grad.clone()
    granite.zero_grad()
    granite.gradient_checkpointing_enable()
    granite.train()
    hidden_of(granite, ids).backward(cotangent)
    assert torch.equal(granite.model.layers[0].mlp.up_proj.weight.grad, expected)


def test_two_models_at_once_and_one_twice(granite):
    cohere, ids = build("cohere"), tokens()
    expected = hidden_of(granite, ids), hidden_of(cohere, ids)
    with hidden_states(granite), hidden_states(cohere):
        with hidden_states(granite):
            assert torch.equal(granite(input_ids=ids).logits, expected[0])
        assert torch.equal(granite(input_ids=ids).logits, expected[0])
        assert torch.equal(cohere(input_ids=ids).logits, expected[1])
        assert granite(input_ids=ids[:, :3]).logits.shape == (2, 3, 32)
    assert granite(input_ids=ids).logits.shape[-1] == V


def test_two_models_with_one_head_take_turns(granite):
    other = build("granite")
    other.lm_head = granite.lm_head
    with hidden_states(granite), pytest.raises(ValueError, match="gives another model's hidden states"):
        hidden_of(other, tokens())
    assert hidden_of(other, tokens()).shape == (2, 7, 32)


def state_of(model):
    head = model.get_output_embeddings()
    return dict(head.__dict__), list(model._forward_hooks), list(model._forward_pre_hooks)


def test_an_exception_leaves_the_model_as_it_was(granite):
    before = state_of(granite)
    with pytest.raises(ZeroDivisionError), hidden_states(granite):
        raise ZeroDivisionError
    assert state_of(granite) == before
    with hidden_states(granite):
        with pytest.raises(Exception, match="input_ids"):
            granite()
        assert granite(input_ids=tokens()).logits.shape[-1] == 32
    assert state_of(granite) == before


def test_a_forward_that_another_library_has_put_there_comes_back(granite):
    head = granite.lm_head
    head.forward = type(head).forward.__get__(head)  # as accelerate does
    mine = head.forward
    hidden_of(granite, tokens())
    assert head.forward is mine


def test_a_compiled_model(granite):
    ids = tokens()
    expected, logits = hidden_of(granite, ids), granite(input_ids=ids).logits
    compiled = torch.compile(granite, backend="eager")
    torch.testing.assert_close(compiled(input_ids=ids).logits, logits)
    torch.testing.assert_close(hidden_of(compiled, ids), expected)
    torch.testing.assert_close(compiled(input_ids=ids).logits, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["granite", "gemma2", "falcon_h1", "hyperclovax"])
def test_the_probe_passes_in_low_precision(family, dtype):
    model, ids = build(family).to(dtype), tokens()
    assert hidden_of(model, ids).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert hidden_of(model.float(), ids).shape == (2, 7, 32)


def test_a_model_that_does_more_to_its_logits_is_refused(granite):
    class Shifted(type(granite)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 0.5
            return output

    granite.__class__ = Shifted
    with hidden_states(granite), pytest.raises(ValueError, match="Shifted does more to its logits than a scale"):
        granite(input_ids=tokens())


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale"])
def test_a_configuration_that_the_model_does_not_follow_is_refused(granite, name):
    """Granite knows neither of the two."""
    setattr(granite.config, name, 50.0)
    with hidden_states(granite), pytest.raises(ValueError, match="use its logits"):
        granite(input_ids=tokens())


def test_labels_and_tuples_are_refused(granite):
    ids = tokens()
    with hidden_states(granite):
        with pytest.raises(ValueError, match="pass no labels"):
            granite(input_ids=ids, labels=ids)
        with pytest.raises(ValueError, match="return_dict=False"):
            granite(input_ids=ids, return_dict=False)


def test_a_head_that_a_forward_pass_does_not_call_is_refused(granite):
    granite.lm_head.register_forward_hook(lambda *_: None)
    granite.__class__ = type("Skips", (type(granite),), {"forward": lambda self, x: SimpleNamespace(logits=x)})
    with hidden_states(granite), pytest.raises(ValueError, match=r"must call its LM head once .* not 0 times"):
        granite(tokens())


class Lora(nn.Module):
    """The shape of PEFT's layers."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.weight = base.weight


def weight_of(dtype: torch.dtype, shape=(V, 32), **attributes) -> SimpleNamespace:
    weight = nn.Parameter(torch.zeros(shape).to(dtype), requires_grad=False)
    for name, value in attributes.items():
        setattr(weight, name, value)
    return SimpleNamespace(weight=weight)


HEADS = {
    "has no LM head": lambda head: None,
    "wrapped by PEFT.*merge_and_unload": lambda head: Lora(head),
    "quantised .*Parameter of uint8.*keep it in floating point": lambda head: weight_of(torch.uint8),
    "quantised .*Parameter of float8_e4m3fn": lambda head: weight_of(torch.float8_e4m3fn),
    "quantised .*Parameter of float16": lambda head: weight_of(torch.float16, SCB=None),
    "quantised .*no weight": lambda head: SimpleNamespace(qweight=torch.zeros(3)),
    "sharded by ZeRO-3.*GatheredParameters": lambda head: weight_of(torch.float32, (0,), ds_id=3),
    "not here whole .*sharded or offloaded": lambda head: weight_of(torch.float32, (V * 16,)),
    "is a DTensor.*full_tensor": lambda head: weight_of(torch.float32, full_tensor=None),
    "not here whole .*meta": lambda head: nn.Linear(32, V, device="meta"),
}


@pytest.mark.parametrize("complaint", HEADS)
def test_heads_that_cannot_be_used_say_what_to_do(granite, monkeypatch, complaint):
    made = HEADS[complaint](granite.lm_head)
    monkeypatch.setattr(granite, "get_output_embeddings", lambda: made)
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        head_parameters(granite)
    with pytest.raises(ValueError, match=f"(?s){complaint}"), hidden_states(granite):
        pass


def test_a_gathered_zero_3_weight_is_used(granite):
    granite.lm_head.weight.ds_id = 3
    assert head_parameters(granite)[0] is granite.lm_head.weight


def test_models_that_are_not_plain_say_so(granite):
    granite.active_peft_config = SimpleNamespace(is_prompt_learning=True)
    with pytest.raises(ValueError, match="learns a prompt"):
        head_parameters(granite)
    wrapper = nn.Module()
    wrapper.module = granite
    with pytest.raises(ValueError, match="pass the model that it wraps, its `module`"):
        head_parameters(wrapper)
