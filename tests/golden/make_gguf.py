"""Golden values for GGUF: gguf_blocks.safetensors, tiny_llama.gguf, tiny_qwen2.gguf, gguf_models.json.

Made with gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0; seed 20261. Run in tests/golden.
"""

import hashlib
import json

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

RANDOM = np.random.default_rng(20261)
HALVES = {  # offsets of float16 fields in a block, which must be finite
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def random_blocks(kind, count):
    """Blocks of random bytes: every bit pattern of the fields, not only those that quantisation gives."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = RANDOM.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in HALVES[kind]:
        blocks[:, offset:offset + 2] = RANDOM.normal(0, 0.1, (count, 1)).astype(np.float16).view(np.uint8)
    return blocks


def make_blocks():
    tensors = {}
    for kind in HALVES:
        blocks = random_blocks(kind, 5)
        if not kind.name.endswith("_K"):
            data = RANDOM.normal(0, 1, (3, 32)).astype(np.float32)
            blocks = np.concatenate([blocks, gguf.quants.quantize(data, kind)])
        tensors[f"{kind.name}.blocks"] = blocks
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    save_file(tensors, "gguf_blocks.safetensors")


def byte_characters():
    """The printable character that stands for each byte in byte-level BPE."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {**{b: chr(b) for b in kept}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def permute(weight, num_heads):
    """llama.cpp's order of q and k: (head, half, i) -> (head, i, half)."""
    rows = weight.shape[0]
    shaped = weight.reshape(num_heads, 2, rows // num_heads // 2, -1)
    return shaped.swapaxes(1, 2).reshape(weight.shape)


LAYER = {
    "input_layernorm.weight": ("attn_norm.weight", None), "post_attention_layernorm.weight": ("ffn_norm.weight", None),
    "self_attn.q_proj.weight": ("attn_q.weight", Type.Q8_0), "self_attn.k_proj.weight": ("attn_k.weight", Type.Q4_1),
    "self_attn.v_proj.weight": ("attn_v.weight", Type.F16), "self_attn.o_proj.weight": ("attn_output.weight", Type.Q5_0),
    "self_attn.q_proj.bias": ("attn_q.bias", None), "self_attn.k_proj.bias": ("attn_k.bias", None),
    "self_attn.v_proj.bias": ("attn_v.bias", None),
    "mlp.gate_proj.weight": ("ffn_gate.weight", Type.BF16), "mlp.up_proj.weight": ("ffn_up.weight", Type.Q4_0),
    "mlp.down_proj.weight": ("ffn_down.weight", Type.Q5_1),
}
HIDDEN, HEADS, KV_HEADS, FFN = 32, 4, 2, 64


def shape_of(name):
    return {"q_proj.weight": (HIDDEN, HIDDEN), "k_proj.weight": (HIDDEN // 2, HIDDEN), "v_proj.weight": (HIDDEN // 2, HIDDEN),
            "o_proj.weight": (HIDDEN, HIDDEN), "q_proj.bias": (HIDDEN,), "k_proj.bias": (HIDDEN // 2,), "v_proj.bias": (HIDDEN // 2,),
            "gate_proj.weight": (FFN, HIDDEN), "up_proj.weight": (FFN, HIDDEN), "down_proj.weight": (HIDDEN, FFN)}.get(
                ".".join(name.split(".")[-2:]), (HIDDEN,))


def make_model(architecture, num_layers, has_bias, is_tied, llama3_factor):
    path = f"tiny_{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)

    characters = byte_characters()
    tokens = ["<|end|>", "<|turn|>"] + [characters[b] for b in range(256)] + ["Ġt", "he", "Ġthe", "<tool>", "[PAD0]"]
    types = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * 259 + [gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if architecture == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(1)
    writer.add_chat_template("{{ messages }}")

    expected = {}

    def add(name, gguf_name, kind, shape, heads=0):
        value = RANDOM.normal(0, 1, shape).astype(np.float32)
        kind = kind or Type.F32
        stored = gguf.quants.quantize(permute(value, heads) if heads else value, kind)
        writer.add_tensor(gguf_name, stored, raw_dtype=kind)
        back = gguf.quants.dequantize(stored, kind).reshape(shape).astype(np.float32)
        if heads:  # undo: (head, i, half) -> (head, half, i)
            back = back.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)
        expected[name] = {"shape": list(shape), "sha256": hashlib.sha256(np.ascontiguousarray(back).tobytes()).hexdigest()}

    vocab = len(tokens)
    add("model.embed_tokens.weight", "token_embd.weight", Type.Q8_0, (vocab, HIDDEN))
    add("model.norm.weight", "output_norm.weight", None, (HIDDEN,))
    if not is_tied:
        add("lm_head.weight", "output.weight", Type.F16, (vocab, HIDDEN))
    for layer in range(num_layers):
        for name, (gguf_name, kind) in LAYER.items():
            if name.endswith("bias") and not has_bias:
                continue
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[1], 0) if architecture == "llama" else 0
            add(f"model.layers.{layer}.{name}", f"blk.{layer}.{gguf_name}", kind, shape_of(name), heads)
    if llama3_factor:
        writer.add_tensor("rope_freqs.weight", llama3_frequencies(llama3_factor, 500000.0, HIDDEN // HEADS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def llama3_frequencies(factor, theta, head_dim):
    """As convert_hf_to_gguf.py makes rope_freqs.weight: low 1, high 4, original length 8192."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


if __name__ == "__main__":
    make_blocks()
    models = {"tiny_llama": make_model("llama", 2, True, False, 32.0), "tiny_qwen2": make_model("qwen2", 1, True, True, None)}
    with open("gguf_models.json", "w") as file:
        json.dump(models, file, indent=1)
        file.write("\n")
