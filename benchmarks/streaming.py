"""A stream against the whole recording: the largest difference, and milliseconds a chunk, for ten sizes of chunk.

The model, of random weights, is a causal Conformer on 80 log-mel bands. Times are of the processor, in one thread, so
that a busy machine changes them little: on an idle one they are the latency.
``make bench`` or ``python -m benchmarks.streaming --dim 144 --depth 8``.
"""

import argparse
import statistics
import time

import torch

from seqformer import Stream, create_model

CHUNKS_MS = (10, 20, 40, 60, 80, 160, 240, 320, 640, 1000)
RATE = 16_000  # Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=144)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--left", type=int, default=64, help="frames of 40 ms that attention sees before its own")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(
        {"name": "logmel", "normalize": "none"},
        {"name": "conformer", "dim": arguments.dim, "depth": arguments.depth, "heads": 4, "causal": True,
         "context": [arguments.left, 0]},
        {"name": "ctc", "vocab": 128},
    ).eval()  # fmt: skip
    x = 0.1 * torch.randn(round(arguments.seconds * RATE))
    began = time.process_time()
    with torch.no_grad():
        whole = model({"x": x[None]}, torch.ones(1, len(x), dtype=torch.bool))["ctc"][0].log_softmax(dim=-1)
    print(f"whole: {arguments.seconds / (time.process_time() - began):.0f} times as fast as the audio")
    for chunk_ms in CHUNKS_MS:
        stream, found, times = Stream(model), [], []
        for chunk in x.split(chunk_ms * RATE // 1000):
            began = time.process_time()
            found.append(stream.push(chunk))
            times.append(1000 * (time.process_time() - began))
        found.append(stream.finish())
        largest = float((torch.cat(found).log_softmax(dim=-1) - whole).abs().max())
        busy = [spent for spent, frames in zip(times, found, strict=False) if len(frames)]  # others only wait for more
        print(
            f"chunks of {chunk_ms:4} ms: largest difference {largest:.1e}; {statistics.median(busy):6.2f} ms a chunk "
            f"that brings frames (median), {1000 * arguments.seconds / sum(times):4.0f} times as fast as the audio"
        )
    print(f"a frame is there {1000 * stream.delay / RATE:.1f} ms after its own first sample")


if __name__ == "__main__":
    main()
