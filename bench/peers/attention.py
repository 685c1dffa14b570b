"""Peers of the sweep: PyTorch's eager attention, its FlashAttention-2 and cuDNN's, timed as bench/timing.ts does.

Reads a JSON request on standard input: {"peers", "jobs"}, `peers` a list of names below or null for all, a job
{"B", "H", "D", "lengths", "causal", "passes", "repetitions"}; prints one JSON row a line:
{"attn", "pass", "causal", "B", "H", "L", "D", "ms", "ms_low", "ms_high", "repetitions"}. Needs torch with CUDA.
"""
import json
import math
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

FLUSH_BYTES = 256 << 20
FLUSHES = 4  # the device is busy for longer than autograd needs on the host, which must not be measured
WARM_UPS = 10


def eager(q, k, v, causal):
    """Scores, softmax and product as three passes with the score matrix in memory: what the course project ran."""
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if causal:
        mask = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~mask, -1e4)
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def fused(backend):
    def attention(q, k, v, causal):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attention


PEERS = {
    "pytorch_eager": eager,
    "pytorch_flash2": fused(SDPBackend.FLASH_ATTENTION),
    "pytorch_cudnn": fused(SDPBackend.CUDNN_ATTENTION),
}


def times(call, repetitions):
    """Sorted milliseconds of `repetitions` calls, the cache flushed before each."""
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    for _ in range(WARM_UPS):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    for start, end in pairs:
        for _ in range(FLUSHES):
            flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)


def measure(name, length, causal, which, job):
    shape = (job["B"], length, job["H"], job["D"])
    # Laid out as [B, L, H, D] like ours, handed over as [B, H, L, D] views.
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    attention = PEERS[name]
    if which == "forward":
        with torch.no_grad():
            return times(lambda: attention(q, k, v, causal), job["repetitions"])
    for tensor in (q, k, v):
        tensor.requires_grad_(True)
    out = attention(q, k, v, causal)
    return times(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), job["repetitions"])


def rows(job, names):
    for length in job["lengths"]:
        for causal in job["causal"]:
            for name in names:
                for which in job["passes"]:
                    row = {"attn": name, "pass": which, "causal": causal, "L": length}
                    row.update({key: job[key] for key in ("B", "H", "D", "repetitions")})
                    try:
                        ms = measure(name, length, causal, which, job)
                        pick = lambda share: ms[round(share * (len(ms) - 1))]
                        row.update(ms=pick(0.5), ms_low=pick(0.1), ms_high=pick(0.9))
                    except RuntimeError as error:
                        print(f"{name} L={length} {which}: {str(error).splitlines()[0]}", file=sys.stderr)
                        continue
                    finally:
                        torch.cuda.empty_cache()
                    yield row


def main():
    request = json.load(sys.stdin)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device for PyTorch")
    for job in request["jobs"]:
        for row in rows(job, request["peers"] or PEERS):
            print(json.dumps(row), flush=True)


main()
