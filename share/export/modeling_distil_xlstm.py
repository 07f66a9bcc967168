# SPDX-License-Identifier: Apache-2.0
"""A converted student of distil-xlstm for `transformers`, in plain PyTorch.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

The teacher's decoder layers with a recurrent cell in the place of each attention: an mLSTM ("mlstm") or the gated delta rule
("gated-delta"), on learned features of the teacher's queries and keys, the block of NX-AI's large models ("xlstm-large"), or an sLSTM on the
teacher's values ("slstm"). Text is read in chunks and written token by token; both go through the same cell, whose state has a constant
size. A hybrid keeps the attention of some layers ("attention"), over a window or over the whole text: then its state grows with it.

Letters: B batch, S sequence, D width of the stream, H heads of K channels, E = H K, F features of a head, J taps of the convolution, L
tokens of a chunk.
"""
import contextlib
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

NONE = float("-inf")  # exp(NONE) = 0


class DistilXlstmConfig(PretrainedConfig):
    """`rotary`: rope_type, rope_theta and the parameters of that type, all in force, or None for no positions; use_rope: whether cells have
    them too, as attention does; rope_max_wavelength: the tokens of the longest turn that they keep, 0 for all. Layer i has
    mixers[i % len(mixers)]. attention_window: tokens that a kept attention sees, 0 for all, beside a text's first attention_sinks.
    normalizer: what divides an mLSTM's output, "sum" or "bounded", at least its bound; head_norm: whether heads are normed behind cells."""

    model_type = "distil_xlstm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8, head_dim=8,
                 rms_norm_eps=1e-6, attention_bias=False, attention_output_bias=False, mlp_bias=False, use_qk_norm=False, rotary=None,
                 mixers=("mlstm",), conv1d_kernel_size=4, feature_factor=2, chunk_size=64, initializer_range=0.02, use_cache=True,
                 tie_word_embeddings=False, use_rope=True, rope_max_wavelength=0.0, num_key_value_heads=None, attention_window=0,
                 attention_sinks=0, normalizer="sum", head_norm=False, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.rms_norm_eps = rms_norm_eps
        self.attention_bias = attention_bias
        self.attention_output_bias = attention_output_bias
        self.mlp_bias = mlp_bias
        self.use_qk_norm = use_qk_norm
        self.rotary = rotary
        self.use_rope = use_rope
        self.rope_max_wavelength = rope_max_wavelength
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.mixers = list(mixers)
        self.attention_window = attention_window
        self.attention_sinks = attention_sinks
        self.normalizer = normalizer
        self.head_norm = head_norm
        self.conv1d_kernel_size = conv1d_kernel_size
        self.feature_factor = feature_factor
        self.chunk_size = chunk_size
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        known = {**CELLS, **MIXERS}
        unknown = sorted(set(self.mixers) - set(known))
        if unknown or not self.mixers:
            raise ValueError(f"config.json: mixers = {self.mixers}: this modeling_distil_xlstm.py knows {sorted(known)}; "
                             "take the file of the export that config.json belongs to")
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class RecurrentState:
    """What goes from token to token, passed as `past_key_values`: for each layer the convolution's last inputs and the cell's state, or the
    keys and values that attention needs. Rows of the batch come first in every tensor."""

    is_compileable = False

    def __init__(self, num_layers):
        self.layers = [None] * num_layers  # (tail, cell) each; None: nothing was read yet
        self.positions_B = None  # tokens that each row has read, padding not counted
        self.num_columns = 0  # of input_ids, padding counted

    def get_seq_length(self, layer_idx=0):
        return self.num_columns

    def tensors(self):
        for layer in self.layers:
            if layer is not None:
                yield from (layer[0], *layer[1])

    def size_bytes(self):
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def reorder_cache(self, rows):
        """Row i becomes what row rows[i] was: for beam search, and to drop or repeat rows."""
        select = lambda x: x.index_select(0, rows.to(x.device))  # noqa: E731
        self.layers = [layer and (select(layer[0]), tuple(map(select, layer[1]))) for layer in self.layers]
        if self.positions_B is not None:
            self.positions_B = select(self.positions_B)

    def reset(self):
        self.__init__(len(self.layers))


# Cells. q, k [B, H, L, F], v [B, H, L, K], input_gate (pre-activation) and log_forget (log of the forget gate) [B, H, L], all float32, and
# the state that enters -> h [B, H, L, K] and the state that leaves. A token with input_gate = -inf and log_forget = 0 changes nothing.


def sums_between(log_forget):
    """[..., t, j]: log_forget over the tokens after j up to t; -inf where j > t."""
    L = log_forget.shape[-1]
    lower = torch.ones(L, L, dtype=torch.bool, device=log_forget.device).tril()
    summands = log_forget.unsqueeze(-1).expand(*log_forget.shape, L).masked_fill(~lower.tril(-1), 0)
    return summands.cumsum(-2).masked_fill(~lower, NONE)


class Mlstm:
    """h_t = sum_j (q_t k_j) e^D_tj v_j / sum_j (q_t k_j) e^D_tj with D_tj = sum_(r = j+1..t) log_forget_r + input_gate_j. The state (C, n, m)
    is kept divided by e^m, and what a token reads by e^frame: any frame gives the same."""

    SOFT_CAP = None
    HAS_FEATURES = True
    EPS = 1e-6
    MIN_FRAME = -10.0  # e^-frame stays finite
    ABOVE_BOUND = 2.0**24  # the divisor is at least 1 (of numbers this much greater): the plain sum divides

    @staticmethod
    def features(phi_q, phi_k, config):
        scale, num_features = math.sqrt(config.head_dim), phi_q.shape[-1]
        return phi_q * scale * (Mlstm.ABOVE_BOUND if config.normalizer == "sum" else 1.0), phi_k * scale / math.sqrt(num_features)

    @staticmethod
    def zero_state(v, num_features):
        B, H, _, K = v.shape
        return v.new_zeros(B, H, num_features, K), v.new_zeros(B, H, num_features), v.new_zeros(B, H)

    @staticmethod
    def chunk(q, k, v, input_gate, log_forget, state):
        C, n, m = state
        between = sums_between(log_forget)
        prefix = log_forget.cumsum(-1)
        D = between + input_gate.unsqueeze(-2)
        entering = prefix + m.unsqueeze(-1)
        frame = torch.maximum(D.amax(-1), entering).clamp_min(Mlstm.MIN_FRAME).detach()
        entry = (entering - frame).exp()
        scores = (q @ k.transpose(-1, -2)) * (D - frame.unsqueeze(-1)).exp()
        numerator = scores @ v + entry.unsqueeze(-1) * (q @ C)
        denominator = scores.sum(-1) + entry * (q @ n.unsqueeze(-1)).squeeze(-1)
        h = numerator / (torch.maximum(denominator.abs(), (-frame).exp()) + Mlstm.EPS).unsqueeze(-1)

        staying, leaving = prefix[..., -1] + m, between[..., -1, :] + input_gate
        m = torch.maximum(staying, leaving.amax(-1)).detach()
        carry = (staying - m).exp()
        weighted_k = k * (leaving - m.unsqueeze(-1)).exp().unsqueeze(-1)
        C = carry[..., None, None] * C + weighted_k.transpose(-1, -2) @ v
        n = carry.unsqueeze(-1) * n + weighted_k.sum(-2)
        return h, (C, n, m)


class GatedDelta:
    """C_t = g_t C_(t-1) + k_t u_t^T, u_t = beta_t (v_t - g_t C_(t-1)^T k_t), h_t = C_t^T q_t: a token writes what the decayed state does not
    already answer at its key. The u of a chunk solve one triangular system."""

    SOFT_CAP = None
    HAS_FEATURES = True

    @staticmethod
    def features(phi_q, phi_k, config):
        return phi_q / phi_q.norm(dim=-1, keepdim=True), phi_k / phi_k.norm(dim=-1, keepdim=True)

    @staticmethod
    def zero_state(v, num_features):
        B, H, _, K = v.shape
        return (v.new_zeros(B, H, num_features, K),)

    @staticmethod
    def chunk(q, k, v, input_gate, log_forget, state):
        (C,) = state
        decay = sums_between(log_forget).exp()
        entry = log_forget.cumsum(-1).exp().unsqueeze(-1)
        beta = input_gate.sigmoid().unsqueeze(-1)
        system = beta * decay * (k @ k.transpose(-1, -2))  # what is on its diagonal and above is not read
        u = torch.linalg.solve_triangular(system, beta * (v - entry * (k @ C)), upper=False, unitriangular=True)
        h = entry * (q @ C) + ((q @ k.transpose(-1, -2)) * decay) @ u
        C = entry[..., -1:, :] * C + (k * decay[..., -1, :].unsqueeze(-1)).transpose(-1, -2) @ u
        return h, (C,)


class XlstmLarge(Mlstm):
    """The mLSTM on queries and keys as they are, so that products may be negative and the divisor's bound counts."""

    SOFT_CAP = 15.0  # of both gates
    HAS_FEATURES = False

    @staticmethod
    def features(q, k, config):
        return q / math.sqrt(config.head_dim), k


CELLS = {"mlstm": Mlstm, "gated-delta": GatedDelta, "xlstm-large": XlstmLarge}


def run_cell(cell, q, k, v, input_gate, log_forget, state, chunk_size):
    """A whole sequence, chunk by chunk; one token is a chunk of one."""
    outputs = []
    for parts in zip(*(x.split(chunk_size, dim=2) for x in (q, k, v, input_gate, log_forget))):
        h, state = cell.chunk(*parts, state)
        outputs.append(h)
    return torch.cat(outputs, dim=2), state


# Rotary positions, in the half-split form: channel i turns with channel i + K / 2.


def rope_frequencies(rotary, head_dim):
    """The K / 2 frequencies, float32 on the CPU."""
    powers = rotary["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    frequencies, kind = 1.0 / powers, rotary["rope_type"]
    if kind == "default":
        return frequencies
    factor = rotary["factor"]
    if kind == "linear":
        return frequencies / factor
    context = rotary["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
        wavelengths = 2 * math.pi / frequencies
        weight = (context / wavelengths - low) / (high - low)
        blended = (1 - weight) * frequencies / factor + weight * frequencies
        stretched = torch.where(wavelengths > context / low, frequencies / factor, frequencies)
        return torch.where((wavelengths >= context / high) & (wavelengths <= context / low), blended, stretched)
    if kind == "yarn":
        low, high = (head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rotary["rope_theta"]))
                     for turns in (rotary["beta_fast"], rotary["beta_slow"]))
        if rotary["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
        return frequencies / factor * (1 - kept) + frequencies * kept
    raise ValueError(f"config.json: rotary.rope_type = {kind!r} is not known: take default, linear, llama3 or yarn")


def rotate(x_BSHK, cos_sin):
    cos, sin = (table.to(x_BSHK.device).unsqueeze(2) for table in cos_sin)
    first, second = x_BSHK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# Layers. The modules have the names of the stored tensors.


class RmsNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        full = x.float()
        return (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(self.weight.dtype)


class Weight(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Projections(nn.Module):
    """What is left of the teacher's attention; keys and values of a group stand once for each of its heads."""

    def __init__(self, config):
        super().__init__()
        D, E = config.hidden_size, config.num_attention_heads * config.head_dim
        self.qkv_proj = nn.Linear(D, 3 * E, bias=config.attention_bias)
        self.o_proj = nn.Linear(E, D, bias=config.attention_output_bias)
        if config.use_qk_norm:
            self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps)


class Mixer(nn.Module):
    """What a student adds to them."""

    def __init__(self, config, cell):
        super().__init__()
        D, H, K = config.hidden_size, config.num_attention_heads, config.head_dim
        self.igate = nn.Linear(D, H)
        self.fgate = nn.Linear(D, H)
        self.ogate = nn.Linear(D, H * K, bias=cell.HAS_FEATURES)
        if config.head_norm or not cell.HAS_FEATURES:
            self.head_norm = Weight(H * K)
        if not cell.HAS_FEATURES:
            return
        if config.conv1d_kernel_size > 0:
            self.conv = Weight(3 * H * K, config.conv1d_kernel_size)
        self.feature_q = Weight(H, K, config.feature_factor * K // 2)
        self.feature_k = Weight(H, K, config.feature_factor * K // 2)


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


# Mixers that are no cell behind features. `projections` and, where a student adds something, `additions` are the modules of a layer; `mix`
# gives what the output projection takes and the new state: a tensor and a tuple of others, rows first.


class AttentionProjections(nn.Module):
    """The teacher's, keys and values of a group once."""

    def __init__(self, config):
        super().__init__()
        D, K = config.hidden_size, config.head_dim
        self.qkv_proj = nn.Linear(D, (config.num_attention_heads + 2 * config.num_key_value_heads) * K, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * K, D, bias=config.attention_output_bias)
        if config.use_qk_norm:
            self.q_norm = RmsNorm(K, config.rms_norm_eps)
            self.k_norm = RmsNorm(K, config.rms_norm_eps)


class Attention:
    """The teacher's own, kept. State: keys, values [B, C, G, K] and how many tokens each row has read. The token at position p stands in column
    p; with a window in that column for the first attention_sinks, and behind them in a ring of attention_window."""

    projections, additions = AttentionProjections, None

    @staticmethod
    def mix(layer, u_BSD, cos_sin, is_token_BS, state):
        config, (B, S, _) = layer.config, u_BSD.shape
        G, K = config.num_key_value_heads, config.head_dim
        q, k, v = layer.self_attn.qkv_proj(u_BSD).view(B, S, -1, K).split((config.num_attention_heads, G, G), dim=2)
        if config.use_qk_norm:
            q, k = layer.self_attn.q_norm(q), layer.self_attn.k_norm(k)
        with in_float32(u_BSD.device):
            q, k, v = rotate(q.float(), cos_sin), rotate(k.float(), cos_sin), v.float()
            if state is None:
                empty = k.new_zeros(B, 0, G, K)
                state = empty, (empty, torch.zeros(B, dtype=torch.long, device=k.device))
            old_k, (old_v, before_B) = state
            mask = Attention.visible(config, before_B, old_k.shape[1], S)
            keys, values = (torch.cat(parts, dim=1).transpose(1, 2).repeat_interleave(config.num_attention_heads // G, dim=1)
                            for parts in ((old_k, k), (old_v, v)))
            mixed = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2)
        after_B = before_B + (S if is_token_BS is None else is_token_BS.sum(1))
        k, v = (Attention.written(config, old, new, before_B, after_B) for old, new in ((old_k, k), (old_v, v)))
        return mixed.reshape(B, S, -1).to(u_BSD.dtype), (k, (v, after_B))

    @staticmethod
    def columns(config, count_B, num_columns):
        """The position of the token in each column [B, C]; what stands nowhere yet is not in 0..count - 1."""
        column_C = torch.arange(num_columns, device=count_B.device).expand(count_B.shape[0], -1)
        if config.attention_window == 0:
            return column_C
        last_B1 = count_B.unsqueeze(1) - 1
        late_BC = last_B1 - (last_B1 - column_C) % config.attention_window
        late_BC = late_BC.masked_fill(late_BC < config.attention_sinks, -1)
        return torch.where(column_C < config.attention_sinks, column_C, late_BC)

    @staticmethod
    def visible(config, before_B, num_columns, S):
        """[B, 1, S, C + S]: what the new tokens see of the columns, and of each other. Padding stands behind them, and sees itself."""
        held_B1C = Attention.columns(config, before_B, num_columns).unsqueeze(1)
        new_S = torch.arange(S, device=before_B.device)
        new_BS = before_B.unsqueeze(1) + new_S
        is_held_B1C = (held_B1C >= 0) & (held_B1C < before_B[:, None, None])
        is_behind = torch.cat((is_held_B1C.expand(-1, S, -1), (new_S <= new_S.unsqueeze(1)).expand(len(before_B), -1, -1)), dim=2)
        if config.attention_window == 0:
            return is_behind.unsqueeze(1)
        position_B1C = torch.cat((held_B1C, new_BS.unsqueeze(1)), dim=2)
        is_near = new_BS.unsqueeze(2) - position_B1C < config.attention_window
        return (is_behind & (is_near | (position_B1C < config.attention_sinks))).unsqueeze(1)

    @staticmethod
    def written(config, old, new, before_B, after_B):
        """The columns after the new tokens."""
        if config.attention_window == 0:
            old = torch.cat((old, torch.zeros_like(new)), dim=1)
        elif old.shape[1] == 0:
            old = new.new_zeros(old.shape[0], config.attention_sinks + config.attention_window, *new.shape[2:])
        place_BC = Attention.columns(config, after_B, old.shape[1]) - before_B.unsqueeze(1)
        is_new_BC = (place_BC >= 0) & (place_BC < (after_B - before_B).unsqueeze(1))
        index = place_BC.clamp(0, new.shape[1] - 1)[:, :, None, None].expand_as(old)
        return torch.where(is_new_BC[:, :, None, None], new.gather(1, index), old)


class ValueProjections(nn.Module):
    """The teacher's values, those of a group once for each of its heads."""

    def __init__(self, config):
        super().__init__()
        D, E = config.hidden_size, config.num_attention_heads * config.head_dim
        self.v_proj = nn.Linear(D, E, bias=config.attention_bias)
        self.o_proj = nn.Linear(E, D, bias=config.attention_output_bias)


class SlstmMixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, H, K = config.hidden_size, config.num_attention_heads, config.head_dim
        if config.conv1d_kernel_size > 0:
            self.conv = Weight(H * K, config.conv1d_kernel_size)
        self.igate = nn.Linear(D, H * K)
        self.fgate = nn.Linear(D, H * K)
        self.ogate = nn.Linear(D, H * K)
        self.recurrent = Weight(H, K, 4, K)
        self.log_range = Weight(H * K)


class Slstm:
    """y_t = sigmoid(o_t) c_t / n_t with c_t = sigmoid(f_t) c_(t-1) + e^i_t tanh(z_t), n_t the same sum of ones, z = v / a, and R y_(t-1) in all
    four pre-activations; out = a y. State: the convolution's last inputs, and y, c, n, m [B, H, K], c and n divided by e^m."""

    projections, additions = ValueProjections, SlstmMixer

    @staticmethod
    def mix(layer, u_BSD, cos_sin, is_token_BS, state):
        config, mixer, (B, S, _) = layer.config, layer.mixer, u_BSD.shape
        tail, cell = state if state is not None else (None, None)
        v, tail = layer.convolve(layer.self_attn.v_proj(u_BSD), is_token_BS, tail)
        with in_float32(u_BSD.device):
            gate = lambda linear: F.linear(u_BSD.float(), linear.weight.float(), linear.bias.float())  # noqa: E731
            a = mixer.log_range.weight.float().exp()
            inputs = torch.stack((gate(mixer.igate), gate(mixer.fgate), v.float() / a, gate(mixer.ogate)), dim=2)
            inputs = inputs.view(B, S, 4, config.num_attention_heads, config.head_dim).transpose(2, 3)
            if cell is None:
                cell = (torch.zeros_like(inputs[:, 0, :, 0]),) * 4
            outputs = []
            for t in range(S):
                after = Slstm.step(inputs[:, t], cell, mixer.recurrent.weight.float())
                if is_token_BS is not None:
                    after = tuple(torch.where(is_token_BS[:, t, None, None], new, old) for new, old in zip(after, cell))
                cell = after
                outputs.append(cell[0])
            mixed = torch.stack(outputs, dim=1).reshape(B, S, -1) * a
        return mixed.to(u_BSD.dtype), (tail, cell)

    @staticmethod
    def step(input_BHGK, cell, recurrent):
        y, c, n, m = cell
        i, f, z, o = (input_BHGK + torch.einsum("bhe,hegk->bhgk", y, recurrent)).unbind(2)
        carried = F.logsigmoid(f) + m
        m = torch.where(n == 0, i, torch.maximum(i, carried)).detach()
        forget, write = (carried - m).clamp_max(0).exp(), (i - m).exp()
        c, n = forget * c + write * z.tanh(), forget * n + write
        return o.sigmoid() * c / n, c, n, m


MIXERS = {"attention": Attention, "slstm": Slstm}


class DistilXlstmLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        name = config.mixers[layer % len(config.mixers)]
        self.cell, self.other = CELLS.get(name), MIXERS.get(name)
        self.has_head_norm = self.cell is not None and (config.head_norm or not self.cell.HAS_FEATURES)
        projections = self.other.projections if self.other else Projections
        additions = self.other.additions if self.other else functools.partial(Mixer, cell=self.cell)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = projections(config)
        if additions is not None:
            self.mixer = additions(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x_BSD, cos_sin, is_token_BS, state):
        """`cos_sin`: of the rotary positions of kept attention, and of cells. is_token_BS: False for padding, which stands behind the other tokens
        of a row; None: there is none. -> the stream, the new state."""
        cos_sin = cos_sin[0 if self.other is not None else 1]
        mixed, state = self.mix(self.input_layernorm(x_BSD), cos_sin, is_token_BS, state)
        x_BSD = x_BSD + mixed
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD)), state

    def mix(self, u_BSD, cos_sin, is_token_BS, state):
        if self.other is not None:
            mixed, state = self.other.mix(self, u_BSD, cos_sin, is_token_BS, state)
            return self.self_attn.o_proj(mixed), state
        B, S, _ = u_BSD.shape
        tail, cell_state = state if state is not None else (None, None)
        qkv, tail = self.convolve(self.self_attn.qkv_proj(u_BSD), is_token_BS, tail)
        q, k, v = qkv.view(B, S, 3, self.config.num_attention_heads, self.config.head_dim).unbind(2)
        if self.config.use_qk_norm:
            q, k = self.self_attn.q_norm(q), self.self_attn.k_norm(k)
        with in_float32(u_BSD.device):
            q, k, v = self.placed(q, cos_sin, "feature_q"), self.placed(k, cos_sin, "feature_k"), v.float().transpose(1, 2)
            q, k = self.cell.features(q, k, self.config)
            input_gate, log_forget = self.gates(u_BSD.float(), is_token_BS)
            if cell_state is None:
                cell_state = self.cell.zero_state(v, q.shape[-1])
            h, cell_state = run_cell(self.cell, q, k, v, input_gate, log_forget, cell_state, self.config.chunk_size)
            if self.has_head_norm:
                h = F.layer_norm(h, h.shape[-1:], eps=self.config.rms_norm_eps)
        h = h.transpose(1, 2).reshape(B, S, -1).to(u_BSD.dtype)
        if self.has_head_norm:
            h = h * self.mixer.head_norm.weight
        return self.self_attn.o_proj(torch.sigmoid(self.mixer.ogate(u_BSD)) * h), (tail, cell_state)

    def placed(self, x_BSHK, cos_sin, feature_map):
        """Queries or keys as the cell takes them [B, H, S, F or K]."""
        x_BSHK = x_BSHK.float()
        if not self.cell.HAS_FEATURES:
            return x_BSHK.transpose(1, 2)
        if cos_sin is not None:
            x_BSHK = rotate(x_BSHK, cos_sin)
        return features(x_BSHK, getattr(self.mixer, feature_map).weight)

    def convolve(self, x_BST, is_token_BS, tail):
        """Depthwise and causal: the last tap is the current token's. `tail`: the J - 1 inputs before; zeros at the start of a text."""
        J, S = self.config.conv1d_kernel_size if self.cell is None or self.cell.HAS_FEATURES else 0, x_BST.shape[1]
        if J == 0:
            return x_BST, x_BST[:, :0]
        tail = x_BST.new_zeros(x_BST.shape[0], J - 1, x_BST.shape[2]) if tail is None else tail.to(x_BST.dtype)
        inputs = torch.cat((tail, x_BST), dim=1)
        taps = self.mixer.conv.weight.to(x_BST.dtype)
        y_BST = sum(inputs[:, j:j + S] * taps[:, j] for j in range(J))
        if is_token_BS is None:
            return y_BST, inputs[:, S:]
        last = is_token_BS.sum(1, keepdim=True) + torch.arange(J - 1, device=x_BST.device)
        return y_BST, inputs.gather(1, last.unsqueeze(-1).expand(-1, -1, inputs.shape[2]))

    def gates(self, u_BSD, is_token_BS):
        """Pre-activation of the input gate and logarithm of the forget gate [B, H, S]."""
        cap = self.cell.SOFT_CAP

        def before(gate):
            x_BHS = F.linear(u_BSD, gate.weight.float(), gate.bias.float()).transpose(1, 2)
            return x_BHS if cap is None else cap * torch.tanh(x_BHS / cap)

        input_gate, log_forget = before(self.mixer.igate), F.logsigmoid(before(self.mixer.fgate))
        if is_token_BS is None:
            return input_gate, log_forget
        is_padding = ~is_token_BS.unsqueeze(1)
        return input_gate.masked_fill(is_padding, NONE), log_forget.masked_fill(is_padding, 0)


def in_float32(device):
    """Without the autocast that a caller may be in."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else contextlib.nullcontext()


def features(x_BSHK, map_HKM):
    """[softmax(x A), softmax(-x A)], positive: [B, H, S, F]."""
    z = x_BSHK.transpose(1, 2) @ map_HKM.float()
    return torch.cat((z.softmax(-1), (-z).softmax(-1)), dim=-1)


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(DistilXlstmLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class DistilXlstmPreTrainedModel(PreTrainedModel):
    config_class = DistilXlstmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DistilXlstmLayer"]
    _is_stateful = True  # no way back to an earlier token: assisted generation is refused

    def _init_weights(self, module):
        """Random values, for a model made from a configuration alone: a student starts from its teacher, or from a checkpoint."""
        if isinstance(module, (nn.Linear, nn.Embedding, Weight)):
            nn.init.normal_(module.weight, std=self.config.initializer_range if not isinstance(module, Weight) else 0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, RmsNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (Mixer, SlstmMixer)):
            nn.init.constant_(module.fgate.bias, 5.0)
            if module.ogate.bias is not None:
                nn.init.constant_(module.ogate.bias, 4.0)
            if hasattr(module, "head_norm"):
                nn.init.ones_(module.head_norm.weight)


class DistilXlstmForCausalLM(DistilXlstmPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "token_embedding.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._frequencies = {}  # of rotary positions, by device
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embedding

    def set_input_embeddings(self, embedding):
        self.token_embedding = embedding

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, head):
        self.lm_head = head

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # generate() leaves the state to forward

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None, use_cache=None,
                output_hidden_states=None, return_dict=None, logits_to_keep=0, **kwargs):
        """`past_key_values`: a RecurrentState, which is changed, or None for the start of a text. `attention_mask`: 0 for padding, on any side;
        its last columns are those of input_ids."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.pop("position_ids", None) is not None:
            raise ValueError("position_ids: positions follow from attention_mask and the state; leave them out, give each text a row of its own")
        x_BSD = (self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds).float()  # as in training, whatever the weights
        state = self.state_of(past_key_values, use_cache)
        order_BS, is_token_BS = padding_last(attention_mask, x_BSD)
        if order_BS is not None:
            x_BSD = take_columns(x_BSD, order_BS)
        x_BSD, hidden_states = self.run_layers(x_BSD, is_token_BS, state, output_hidden_states)
        if order_BS is not None:
            back_BS = order_BS.argsort(dim=1)
            x_BSD, hidden_states = take_columns(x_BSD, back_BS), [take_columns(hidden, back_BS) for hidden in hidden_states]

        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # 0: all
        logits = self.lm_head(x_BSD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state, hidden_states=tuple(hidden_states) or None)
        return output if return_dict is not False else output.to_tuple()

    def state_of(self, past, use_cache):
        if past is not None and not isinstance(past, RecurrentState):
            raise ValueError(f"past_key_values is a {type(past).__name__}: give what an earlier call returned, a RecurrentState")
        if use_cache is None:
            use_cache = past is not None or (self.config.use_cache and not self.training)
        return (past if past is not None else RecurrentState(len(self.model.layers))) if use_cache else None

    def run_layers(self, x_BSD, is_token_BS, state, output_hidden_states):
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        B, S, _ = x_BSD.shape
        before_B = state.positions_B if state is not None else None
        if before_B is None:
            before_B = torch.zeros(B, dtype=torch.long, device=x_BSD.device)
        if before_B.shape[0] != B:
            raise ValueError(f"past_key_values has {before_B.shape[0]} rows, the input has {B}: give each row its own state")
        cos_sin = self.cos_sin(before_B.to(x_BSD.device).unsqueeze(1) + torch.arange(S, device=x_BSD.device))
        hidden_states = []
        new_layers = []
        for index, layer in enumerate(self.model.layers):
            if output_hidden_states:
                hidden_states.append(x_BSD)
            x_BSD, (tail, cell) = layer(x_BSD, cos_sin, is_token_BS, state.layers[index] if state is not None else None)
            if state is not None:
                new_layers.append((tail.detach(), tuple(tensor.detach() for tensor in cell)))
        x_BSD = self.model.norm(x_BSD)
        if output_hidden_states:
            hidden_states.append(x_BSD)
        if state is not None:
            state.layers = new_layers
            state.positions_B = before_B + (S if is_token_BS is None else is_token_BS.sum(1).to(before_B.device))
            state.num_columns += S
        return x_BSD, hidden_states

    def cos_sin(self, positions_BS):
        """Of the rotary angles [B, S, K / 2], of kept attention and of cells, whose slow channels may stay where they are; None: no positions."""
        if self.config.rotary is None:
            return None, None
        device = positions_BS.device
        if device not in self._frequencies:
            frequencies, longest = rope_frequencies(self.config.rotary, self.config.head_dim), self.config.rope_max_wavelength
            self._frequencies[device] = frequencies.to(device), (2 * math.pi / frequencies > (longest or math.inf)).to(device)
        frequencies, is_slow = self._frequencies[device]
        angles = positions_BS.float().unsqueeze(-1) * frequencies
        factor = self.config.rotary.get("attention_factor", 1.0)
        whole = angles.cos() * factor, angles.sin() * factor
        if not self.config.use_rope or not self.config.rope_max_wavelength:
            return whole, whole if self.config.use_rope else None
        return whole, (whole[0].masked_fill(is_slow, factor), whole[1].masked_fill(is_slow, 0.0))


def padding_last(attention_mask, x_BSD):
    """The columns of each row with its padding last, and which of those count; None, None where there is no padding."""
    if attention_mask is None:
        return None, None
    B, S, _ = x_BSD.shape
    if attention_mask.dim() != 2 or attention_mask.shape[0] != B or attention_mask.shape[1] < S:
        raise ValueError(f"attention_mask is {list(attention_mask.shape)}, the input [{B}, {S}]: give a row each with at least as many columns, "
                         "1 for tokens and 0 for padding")
    is_token_BS = attention_mask[:, -S:].to(x_BSD.device) != 0
    if is_token_BS.all():
        return None, None
    order_BS = (~is_token_BS).long().argsort(dim=1, stable=True)
    return order_BS, is_token_BS.gather(1, order_BS)


def take_columns(x_BSD, columns_BS):
    return x_BSD.gather(1, columns_BS.unsqueeze(-1).expand_as(x_BSD))
