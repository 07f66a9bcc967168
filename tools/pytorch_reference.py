"""The training step that `distil-xlstm bench` measures, as PyTorch users write it today: teacher from `transformers`, student from the
package `xlstm`, full logits, the same losses. Prints one line a result; --json keeps them, for tools/bench_summary.

usage: python tools/pytorch_reference.py [--geometry qwen2.5-1.5b] [--precision autocast-fp16] [--micro-batch-sizes 8,32] [--parts] ...

Weights are random: speed and memory do not depend on them. On a GPU the package builds its sLSTM kernel at run time; with CUDA 13 that
needs NVCC_APPEND_FLAGS="-static-global-template-stub=false" and TORCH_CUDA_ARCH_LIST. --slstm vanilla takes its plain PyTorch cell.
"""
import argparse
import importlib.util
import json
import math
import sys
import time
import types
from pathlib import Path

import torch
from torch.nn import functional

sys.modules.setdefault("omegaconf", types.SimpleNamespace(OmegaConf=object))  # `xlstm` imports it for its command line only
import transformers  # noqa: E402
import xlstm  # noqa: E402

GEOMETRIES = {
    "qwen2.5-1.5b": dict(family="Qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                         num_attention_heads=12, num_key_value_heads=2, rms_norm_eps=1e-6, student_heads=12),
    "smollm2-135m": dict(family="Llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5, student_heads=12),
}
ALPHA, BETA, TEMPERATURE = 0.7, 0.1, 2.0
PARTS = ["slstm", "slstm_flashrnn", "mlstm", "head_loss", "teacher_forward"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="qwen2.5-1.5b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["autocast-fp16", "bf16", "fp32"], default=None,
                        help="autocast-fp16: float32 weights and loss scaling, as the paper's authors train (default on a GPU); "
                             "bf16: bfloat16 teacher and autocast; fp32 (default on a CPU)")
    parser.add_argument("--slstm", choices=["cuda", "vanilla"], default=None)
    parser.add_argument("--micro-batch-sizes", default="8", help="one or several, 8,32")
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--parts", nargs="?", const=",".join(PARTS), default="",
                        help="time parts too, at the first size: all, or some of " + ",".join(PARTS) + " (slstm_flashrnn: where it is installed)")
    parser.add_argument("--no-steps", action="store_true", help="parts alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.precision = args.precision or ("autocast-fp16" if on_gpu else "fp32")
    args.slstm = args.slstm or ("cuda" if on_gpu else "vanilla")
    args.micro_batch_sizes = [int(size) for size in args.micro_batch_sizes.split(",")]
    args.parts = [name for name in args.parts.split(",") if name]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if not on_gpu or importlib.util.find_spec("flashrnn") is None:
        args.parts = [name for name in args.parts if name != "slstm_flashrnn"]
    return args


def median_seconds(call, device, block_seconds=0.02, all_seconds=6.0, most=9):
    """As `bench` measures: two calls to warm up, then blocks of calls without waiting between them."""
    def time_of(calls):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    time_of(1)
    estimate = time_of(1)
    calls = max(1, min(1000, int(block_seconds / estimate) + 1))
    blocks = max(3, min(most, int(all_seconds / (estimate * calls))))
    return sorted(time_of(calls) for _ in range(blocks))[blocks // 2]


class Reference:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        shape = dict(GEOMETRIES[args.geometry])
        self.heads, family = shape.pop("student_heads"), shape.pop("family")
        self.vocab, self.width = shape["vocab_size"], shape["hidden_size"]
        self.amp = {"autocast-fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
        config = getattr(transformers, family + "Config")(**shape, tie_word_embeddings=True, max_position_embeddings=8192)
        config._attn_implementation = "sdpa"
        torch.set_default_dtype(torch.bfloat16 if args.precision == "bf16" else torch.float32)
        with self.device:
            self.teacher = getattr(transformers, family + "ForCausalLM")(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)

    def autocast(self):
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp != torch.float32)

    def student(self, rows):
        args = self.args
        blocks = xlstm.xLSTMBlockStackConfig(
            mlstm_block=xlstm.mLSTMBlockConfig(mlstm=xlstm.mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=self.heads)),
            slstm_block=xlstm.sLSTMBlockConfig(
                slstm=xlstm.sLSTMLayerConfig(backend=args.slstm, num_heads=self.heads, conv1d_kernel_size=4, batch_size=rows,
                                             bias_init="powerlaw_blockdependent",
                                             dtype={torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}[self.amp]),
                feedforward=xlstm.FeedForwardConfig(proj_factor=1.7, act_fn="gelu")),
            context_length=args.context_length, num_blocks=args.blocks, embedding_dim=self.width, slstm_at=list(range(0, args.blocks, 2)))
        student = xlstm.xLSTMBlockStack(blocks).to(self.device)
        student.reset_parameters()
        return student

    def step(self, rows):
        """Seconds of an optimizer step, peak bytes."""
        accumulate, student = self.args.gradient_accumulation_steps, self.student(rows)
        embedding = self.teacher.model.embed_tokens.weight
        head = self.teacher.lm_head.weight.to(self.amp)
        optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        tokens = torch.randint(self.vocab, (rows, self.args.context_length + 1), device=self.device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)

        def micro_step():
            with torch.no_grad(), self.autocast():
                out = self.teacher(input_ids=inputs, output_hidden_states=True, use_cache=False)
                states = torch.stack(out.hidden_states[1:]).mean(0)
                teacher_logits = out.logits.reshape(-1, self.vocab)
            with self.autocast():
                hidden = student(functional.embedding(inputs, embedding).to(torch.float32 if self.amp == torch.float16 else self.amp))
                logits = functional.linear(hidden, head).reshape(-1, self.vocab)
                ce = functional.cross_entropy(logits, targets)
                kl = functional.kl_div(functional.log_softmax(logits / TEMPERATURE, -1), functional.softmax(teacher_logits / TEMPERATURE, -1),
                                       reduction="batchmean")
                frobenius = (states.float() - hidden.float()).norm() / math.sqrt(hidden.numel())
                loss = (1 - ALPHA - BETA) * ce + ALPHA * TEMPERATURE**2 * kl + BETA * frobenius
            scaler.scale(loss / accumulate).backward()

        def step():
            for _ in range(accumulate):
                micro_step()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(step, self.device)
        return seconds, torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def teacher_forward(self, rows):
        """Seconds without and with torch.compile: the last hidden states, without the head and without the mean of all layers' states."""
        tokens = torch.randint(self.vocab, (rows, self.args.context_length), device=self.device)
        results = {}
        for name, model in (("eager", self.teacher.model), ("compiled", torch.compile(self.teacher.model))):
            with torch.no_grad(), self.autocast():
                results[name] = median_seconds(lambda: model(input_ids=tokens, use_cache=False), self.device)
        return results

    def slstm(self, rows):
        """Forward and backward of the package's cell."""
        cell = self.student(rows).blocks[0].xlstm.slstm_cell
        inputs = torch.randn(rows, self.args.context_length, 4 * self.width, device=self.device, requires_grad=True)

        def call():
            with self.autocast():
                out, _ = cell(inputs)
            out.float().sum().backward()

        return median_seconds(call, self.device)

    def slstm_flashrnn(self, rows):
        """The same of the package `flashrnn`: its alternating kernels (a matrix product and a point-wise kernel a token)."""
        from flashrnn import flashrnn
        width = self.width // self.heads
        tensor = lambda *shape: torch.randn(*shape, device=self.device, dtype=self.amp, requires_grad=True)  # noqa: E731
        inputs, recurrent, bias = tensor(rows, self.args.context_length, 4, self.heads, width), tensor(4, self.heads, width, width), tensor(4, self.heads, width)
        recurrent.data /= width**0.5

        def call():
            out, _ = flashrnn(inputs, recurrent, bias, function="slstm", backend="cuda", dtype=str(self.amp).removeprefix("torch."))
            out[0].float().sum().backward()

        return median_seconds(call, self.device)

    def mlstm(self, rows):
        """Forward and backward of the package's cell (parallel form)."""
        cell = self.student(rows).blocks[1].xlstm.mlstm_cell
        q, k, v = (torch.randn(rows, self.args.context_length, 2 * self.width, device=self.device, dtype=self.amp, requires_grad=True)
                   for _ in range(3))

        def call():
            with self.autocast():
                out = cell(q=q, k=k, v=v)
            out.float().sum().backward()

        return median_seconds(call, self.device)

    def head_loss(self, rows):
        """Both logits, CE, KL and the gradient of the hidden states."""
        tokens = rows * self.args.context_length
        head = self.teacher.lm_head.weight.to(self.amp)
        student, teacher = (torch.randn(tokens, self.width, device=self.device, dtype=self.amp) for _ in range(2))
        student.requires_grad_(True)
        targets = torch.randint(self.vocab, (tokens,), device=self.device)

        def call():
            with torch.no_grad():
                probabilities = functional.softmax(functional.linear(teacher, head).float() / TEMPERATURE, -1)
            logits = functional.linear(student, head).float()
            kl = functional.kl_div(functional.log_softmax(logits / TEMPERATURE, -1), probabilities, reduction="batchmean")
            ((1 - ALPHA) * functional.cross_entropy(logits, targets) + ALPHA * TEMPERATURE**2 * kl).backward()

        return median_seconds(call, self.device)


def main():
    args = parse_arguments()
    torch.manual_seed(0)
    reference = Reference(args)
    device = torch.cuda.get_device_name() if reference.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    results = dict(program=f"torch {torch.__version__}, transformers {transformers.__version__}", device=device, geometry=args.geometry,
                   precision=args.precision, slstm=args.slstm, context_length=args.context_length, steps=[], parts={})
    for rows in [] if args.no_steps else args.micro_batch_sizes:
        try:
            seconds, peak = reference.step(rows)
        except torch.OutOfMemoryError:
            print(f"step {rows} rows: out of memory")
            results["steps"].append(dict(micro_batch_size=rows, tokens_per_second=None, peak_memory_bytes=None))
            torch.cuda.empty_cache()
            continue
        rate = args.gradient_accumulation_steps * rows * args.context_length / seconds
        results["steps"].append(dict(micro_batch_size=rows, step_ms=seconds * 1e3, tokens_per_second=rate, peak_memory_bytes=peak))
        print(f"step {rows} rows: {seconds * 1e3:.1f} ms, {rate:.0f} tokens/s" + (f", peak {peak / 2**30:.1f} GiB" if peak else ""), flush=True)
    for name in args.parts:
        seconds = getattr(reference, name)(args.micro_batch_sizes[0])
        for form, value in seconds.items() if isinstance(seconds, dict) else [("", seconds)]:
            results["parts"]["_".join(filter(None, (name, form, "ms")))] = 1e3 * value
            print(f"{name}{form and ', '}{form}: {1e3 * value:.2f} ms", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
