"""Peers of `deno task bench --what step`: the same Transformer in PyTorch, as fast as its own means make it.

Reads a JSON request on standard input: {"jobs": [{"model", "B", "L", "layers", "width", "feedForward", "heads",
"vocabulary"}], "steps"}; prints one JSON row a line: {"attn", "model", "B", "L", "ms", "ms_low", "ms_high"}. Two peers: eager
with fused attention, and torch.compile with the whole step in one CUDA graph. Weights are bfloat16 with fused Adam: less
exact than ours, which keeps float32 master weights, and faster for it.
"""
import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

DROPOUT = 0.1
ROUNDS = 5


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x, memory, causal):
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).chunk(2, dim=-1)
        y = F.scaled_dot_product_attention(
            split(self.q(x)), split(k), split(v), is_causal=causal, dropout_p=DROPOUT if self.training else 0.0
        )
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, feed_forward, heads, cross):
        super().__init__()
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(2 if cross else 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.causal = cross

    def forward(self, x, memory=None):
        h = self.norms[0](x)
        x = x + F.dropout(self.attentions[0](h, h, self.causal), DROPOUT, self.training)
        if memory is not None:
            x = x + F.dropout(self.attentions[1](self.norms[1](x), memory, False), DROPOUT, self.training)
        h = F.dropout(F.relu(self.up(self.norms[-1](x))), DROPOUT, self.training)
        return x + F.dropout(self.down(h), DROPOUT, self.training)


class Transformer(nn.Module):
    def __init__(self, job):
        super().__init__()
        width, vocabulary = job["width"], job["vocabulary"]
        make = lambda cross: Layer(width, job["feedForward"], job["heads"], cross)
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.encoder = nn.ModuleList(make(False) for _ in range(job["layers"]))
        self.decoder = nn.ModuleList(make(True) for _ in range(job["layers"]))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.output = nn.Linear(width, vocabulary)
        self.scale = math.sqrt(width)
        position = torch.arange(job["L"])[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
        self.register_buffer("positions", torch.stack([position.sin(), position.cos()], -1).flatten(1))

    def forward(self, source, target, wanted):
        embed = lambda table, ids: F.dropout(table(ids) * self.scale + self.positions, DROPOUT, self.training)
        memory = embed(self.source, source)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.norms[0](memory)
        x = embed(self.target, target)
        for layer in self.decoder:
            x = layer(x, memory)
        logits = self.output(self.norms[1](x))
        return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=0, label_smoothing=0.1)


def make_step(job, compiled):
    model = Transformer(job).to("cuda", torch.bfloat16).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True, capturable=compiled)
    forward = torch.compile(model) if compiled else model
    batch = [torch.randint(4, job["vocabulary"], (job["B"], job["L"]), device="cuda") for _ in range(3)]

    def step():
        optimizer.zero_grad(set_to_none=True)
        forward(*batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    if not compiled:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main():
    request = json.load(sys.stdin)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device for PyTorch")
    for job in request["jobs"]:
        for name, compiled in (("pytorch_eager", False), ("pytorch_compiled_graph", True)):
            step = make_step(job, compiled)
            for _ in range(5):
                step()
            times = []
            for _ in range(ROUNDS):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(request["steps"]):
                    step()
                torch.cuda.synchronize()
                times.append(1000 * (time.perf_counter() - start) / request["steps"])
            times.sort()
            row = {"attn": name, "model": job["model"], "B": job["B"], "L": job["L"]}
            row.update(ms=times[ROUNDS // 2], ms_low=times[0], ms_high=times[-1])
            print(json.dumps(row), flush=True)
            del step
            torch.cuda.empty_cache()


main()
