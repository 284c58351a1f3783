import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from bessemer.checkpoint.huggingface import load_into, read_shape, read_weights
from bessemer.errors import DataError, RecipeError
from bessemer.model.decoder import Decoder

SIZES = {
    "vocab_size": 192,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def qwen3(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 16, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is not applied
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def imported(folder: Path) -> Decoder:
    model = Decoder(read_shape(folder), torch.float32)
    load_into(model, folder)
    return model


@pytest.mark.parametrize(
    "trusted",
    [
        llama,
        lambda: llama(tie_word_embeddings=True),
        lambda: llama(rope_parameters=LLAMA3_ROPE),
        lambda: llama(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}),
        qwen3,
        lambda: qwen3(tie_word_embeddings=True),
    ],
    ids=["llama", "llama tied", "llama3 rope", "linear rope", "qwen3", "qwen3 tied"],
)
def test_imported_model_has_the_logits_of_transformers(trusted, tmp_path):
    model = trusted()
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 192, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = imported(tmp_path)
        torch.testing.assert_close(ours.logits(ours(tokens)), model(tokens).logits, rtol=0, atol=1e-5)


def test_imported_weights_are_bitwise_those_of_the_file(tmp_path):
    model = llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    ours = imported(tmp_path).state_dict()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(ours[name].to(torch.bfloat16), tensor), name


def test_sharded_folder_reads_the_same_as_one_file(tmp_path):
    llama().save_pretrained(tmp_path / "one")
    llama().save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = dict(read_weights(tmp_path / "one")), dict(read_weights(tmp_path / "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    imported(tmp_path / "many")


def test_missing_extra_and_misshapen_tensors_are_named_before_any_weight_changes(tmp_path):
    llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    model = Decoder(read_shape(tmp_path), torch.float32)
    torch.nn.init.zeros_(model.model.norm.weight)

    missing = {name: tensor for name, tensor in good.items() if name != "model.norm.weight"}
    extra = {**good, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}
    misshapen = {**good, "model.norm.weight": torch.ones(32)}
    for tensors, named in [
        (missing, "missing: model.norm.weight"),
        (extra, "not part of this model: model.layers.0.self_attn.q_proj.bias"),
        (misshapen, r"model.norm.weight of shape \[32\] instead of \[48\]"),
    ]:
        save_file(tensors, file)
        with pytest.raises(DataError, match=named):
            load_into(model, tmp_path)
        assert not model.model.norm.weight.any()


def test_copy_of_a_tied_embedding_is_accepted_and_another_head_is_not(tmp_path):
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, file)
    imported(tmp_path)
    save_file({**tensors, "lm_head.weight": head + 1}, file)
    with pytest.raises(DataError, match="lm_head"):
        imported(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    llama().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(RecipeError, match=r"pytorch_model\.bin: pickled"):
        imported(tmp_path)


def test_damaged_file_and_foreign_config_are_the_users_errors(tmp_path):
    llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot read the weights"):
        imported(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(RecipeError, match="cannot read"):
        read_shape(tmp_path)
    with pytest.raises(RecipeError, match="cannot read"):
        read_shape(tmp_path / "nowhere")


def test_rows_are_1024_tokens_unless_said_however_many_positions_there_are(tmp_path):
    LlamaConfig(**{**SIZES, "max_position_embeddings": 131072}).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert (shape.context, shape.max_positions) == (1024, 131072)
    assert read_shape(tmp_path, context=4096).context == 4096
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    assert read_shape(tmp_path).context == read_shape(tmp_path).max_positions == 256


def test_config_that_is_no_object_is_the_users_error(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(RecipeError, match="cannot read") as caught:
        read_shape(tmp_path)
    assert "list" in caught.value.found


def test_index_never_leads_out_of_its_folder(tmp_path):
    llama().save_pretrained(tmp_path / "secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "config.json").write_text((tmp_path / "secret/config.json").read_text())
    index = {"weight_map": {"model.norm.weight": "../secret/model.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"inside/model\.safetensors"):
        imported(inside)
