"""What truncation costs on skewed data, and whether the shift of BT* is where it should be.

python examples/benchmarks/skewness.py --plot skewness.png

Samples go from normal to lognormal, ``x = (exp(w g) - 1) / w`` for normal ``g``, and are quantized
with one range. Each quantizer starts from its own grid search, as in training. BT* shifts by the
skewness, in 8-bit codes as in the paper or in truncation steps.

Two things can be asked of a shift. One is the *error* of single values (squared, over the variance,
so 1 is as bad as a constant). Rounding to the nearest level is best there, whatever the data, so no
shift can beat none; the table shows it. The other is the *bias* (mean error, in standard
deviations), which is what an average over many neighbours keeps. The best shift for the bias is
found by trying all of them on the range that BT found.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _runs import mean_std, pyplot, show
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.ops.reference import fake_quantize, truncation_step
from torch_geometric_qlr.quantizers import LearnedRangeQuant

QUANTIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "BT": {"truncation": "bt"},
    "BT* codes": {"truncation": "bt*"},
    "BT* steps": {"truncation": "bt*", "skewness_unit": "step"},
}
BEST = "BT best"  # BT with the shift that leaves the least bias


def sample(weight: float, count: int, seed: int, positive: bool) -> Tensor:
    """Numbers of a skewness that grows with the weight: 0 is normal, 1 lognormal."""
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    x = torch.expm1(weight * normal) / weight if weight > 0 else normal
    return x - x.min() if positive else x


def error(x: Tensor, value: Tensor) -> float:
    return float((x - value).square().mean() / x.var())


def bias(x: Tensor, value: Tensor) -> float:
    return float((value - x).mean() / x.std())


@torch.no_grad()
def measure(x: Tensor, bits: int) -> dict[str, float]:
    """Errors and biases of all quantizers, and all shifts in 8-bit codes."""
    out = {"skewness": float(((x - x.mean()) / x.std()).pow(3).mean())}
    for name, options in QUANTIZERS.items():
        quantizer = LearnedRangeQuant(QuantizerConfig(bits=bits, **options))
        value = quantizer(x)[0]
        out[f"error {name}"], out[f"bias {name}"] = error(x, value), bias(x, value)
        scale, zero_point, shift = quantizer.code_params(x.view(1, -1))
        if shift is not None:
            out[f"shift {name}"] = float(shift)
        if name == "BT":
            out |= _try_shifts(x, scale, zero_point, bits)
    return out


def _try_shifts(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> dict[str, float]:
    half = truncation_step(bits) / 2
    shifts = torch.arange(-int(half), int(half) + 1, dtype=torch.float32)
    values = [
        fake_quantize(x, scale, zero_point, bits, truncate=True, skew=shift)[0] for shift in shifts
    ]
    errors = torch.tensor([error(x, value) for value in values])
    biases = torch.tensor([bias(x, value) for value in values])
    best = biases.abs().argmin()
    return {
        "least-error shift": float(shifts[errors.argmin()]),
        "least-bias shift": float(shifts[best]),
        f"error {BEST}": float(errors[best]),
        f"bias {BEST}": float(biases[best]),
    }


def draw(rows: list[dict[str, float]], args: argparse.Namespace) -> None:
    """Errors, biases and shifts against skewness."""
    plt = pyplot()
    skew = [row["skewness"] for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.2), layout="constrained")
    names = [*QUANTIZERS, BEST]
    # Where lines coincide, the dashed one on top lets the other be seen.
    styles = dict(zip(names, ("-", "-", "--", "-", ":"), strict=True))
    for axis, kind in zip(axes, ("error", "bias"), strict=False):
        for name in names:
            values = [row[f"{kind} {name}"] for row in rows]
            axis.plot(skew, values, styles[name], marker="o", markersize=4, label=name)
    axes[0].set_ylabel("squared error / variance")
    axes[0].set_yscale("log")
    axes[1].set_ylabel("mean error / standard deviation")
    axes[1].set_ylim(-0.5, 0.5)
    half = truncation_step(args.bits) / 2
    for name in ("shift BT* codes", "shift BT* steps", "least-error shift", "least-bias shift"):
        # A shift of half a step or more makes an extreme level of every value.
        values = [min(row[name], 1.1 * half) for row in rows]
        style = "--" if name.startswith("least") else "-"
        axes[2].plot(skew, values, style, marker="o", markersize=4, label=name)
    axes[2].set_ylabel(f"shift (8-bit codes; half a step is {half:g})")
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 0.5, 1, 2, 4, 6], ["0", "0.5", "1", "2", "4", "6"])
        axis.set_xlabel("skewness of the input")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(f"{args.bits} bits, from normal to lognormal")
    figure.savefig(args.plot, dpi=120)
    print(f"written: {args.plot}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bits", type=int, default=2, choices=range(1, 8))
    add("--count", type=int, default=20_000, help="numbers per sample")
    add("--seeds", type=int, default=5, help="samples per skewness")
    add("--weights", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
    add("--positive", action="store_true", help="move samples to start at 0")
    add("--markdown", type=Path, help="write the table to this file")
    add("--plot", type=Path, help="draw the table to this file")
    args = parser.parse_args()
    rows = []
    for weight in args.weights:
        runs = [
            measure(sample(weight, args.count, seed, args.positive), args.bits)
            for seed in range(args.seeds)
        ]
        rows.append({name: mean_std(run[name] for run in runs)[0] for name in runs[0]})
    shown = [f"error {name}" for name in QUANTIZERS] + ["bias BT", "bias BT* codes"]
    shown = ["skewness", *shown, "least-error shift", "least-bias shift"]
    show(shown, [[f"{row[name]:.3f}" for name in shown] for row in rows], args.markdown)
    if args.plot is not None:
        draw(rows, args)


if __name__ == "__main__":
    main()
