"""What truncation costs on skewed data, and whether the shift of BT* is where it should be.

python examples/benchmarks/skewness.py --plot skewness.png

Samples go from normal to lognormal, ``x = (exp(w g) - 1) / w`` for normal ``g``, and are quantized
with one range; once as they are (signed), once moved to start at 0 (positive). Each quantizer
starts from its own grid search, as in training. BT* shifts by the skewness, in 8-bit codes as in
the paper or in truncation steps.

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
from torch_geometric_qlr.ops import QParams
from torch_geometric_qlr.ops.reference import fake_quantize, truncation_step
from torch_geometric_qlr.quantizers import LearnedRangeQuant

QUANTIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "BT": {"truncation": "bt"},
    "BT* codes": {"truncation": "bt*"},
    "BT* steps": {"truncation": "bt*", "skewness_unit": "step"},
}
FORMS = ("signed", "positive")
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
    how = QParams(scale, zero_point, bits, truncate=True)
    values = [fake_quantize(x, how._replace(skew=shift))[0] for shift in shifts]
    errors = torch.tensor([error(x, value) for value in values])
    biases = torch.tensor([bias(x, value) for value in values])
    best = biases.abs().argmin()
    return {
        "least-error shift": float(shifts[errors.argmin()]),
        "least-bias shift": float(shifts[best]),
        f"error {BEST}": float(errors[best]),
        f"bias {BEST}": float(biases[best]),
    }


#: One colour per quantizer; where lines coincide, a dashed one lets the other be seen.
STYLES = {
    "plain": ("tab:gray", "-"),
    "BT": ("tab:blue", "-"),
    "BT* codes": ("tab:orange", "--"),
    "BT* steps": ("tab:red", "-"),
    BEST: ("tab:green", ":"),
}


def draw(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Errors, biases and shifts against skewness, one row of panels per form of the data."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(found), 3, figsize=(14, 3.8 * len(found)), squeeze=False, layout="constrained"
    )
    for row, (form, rows) in zip(axes, found.items(), strict=True):
        _draw_row(row, rows, truncation_step(args.bits) / 2)
        row[0].set_title(f"{form} data: error of a value")
        row[1].set_title(f"{form} data: bias")
        row[2].set_title(f"{form} data: shift of the thresholds")
    for axis in axes[-1]:
        axis.set_xlabel("skewness of the input")
    for axis in axes[0]:
        axis.legend(fontsize="small", loc="upper left")
    figure.suptitle(f"{args.bits} bits, from normal to lognormal (higher values are cut off)")
    figure.savefig(args.plot, dpi=100)
    print(f"written: {args.plot}")


def _draw_row(axes: Any, rows: list[dict[str, float]], half: float) -> None:
    skew = [row["skewness"] for row in rows]

    def line(axis: Any, key: str, style: tuple[str, str], label: str) -> None:
        values = [row[key] for row in rows]
        axis.plot(skew, values, style[1], color=style[0], marker="o", markersize=4, label=label)

    for name, style in STYLES.items():
        line(axes[0], f"error {name}", style, name)
        line(axes[1], f"bias {name}", style, name)
    for name in ("BT* codes", "BT* steps"):
        line(axes[2], f"shift {name}", STYLES[name], name)
    line(axes[2], "least-error shift", ("tab:blue", ":"), "best for the error")
    line(axes[2], "least-bias shift", STYLES[BEST], "best for the bias")
    axes[0].set_ylabel("squared error / variance")
    axes[0].set_ylim(0, 1)
    axes[1].set_ylabel("mean error / standard deviation")
    axes[1].set_ylim(-0.25, 0.4)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[2].set_ylabel("8-bit codes")
    # A shift of half a step or more makes an extreme level of every value.
    axes[2].set_ylim(-15, half)
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 0.5, 1, 2, 4, 6], ["0", "0.5", "1", "2", "4", "6"])
        axis.grid(alpha=0.3)


def study(args: argparse.Namespace, form: str) -> list[dict[str, float]]:
    """Means over the samples, one row per skewness."""
    rows = []
    for weight in args.weights:
        runs = [
            measure(sample(weight, args.count, seed, form == "positive"), args.bits)
            for seed in range(args.seeds)
        ]
        rows.append({name: mean_std(run[name] for run in runs)[0] for name in runs[0]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bits", type=int, default=2, choices=range(1, 8))
    add("--count", type=int, default=20_000, help="numbers per sample")
    add("--seeds", type=int, default=5, help="samples per skewness")
    add("--weights", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
    add("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    add("--markdown", type=Path, help="write the table to this file")
    add("--plot", type=Path, help="draw the table to this file")
    args = parser.parse_args()
    found = {form: study(args, form) for form in args.forms}
    shown = [f"error {name}" for name in QUANTIZERS] + ["bias BT", "bias BT* codes"]
    shown = ["skewness", *shown, "least-error shift", "least-bias shift"]
    table = [
        [form, *(f"{row[name]:.3f}" for name in shown)]
        for form, rows in found.items()
        for row in rows
    ]
    show(["data", *shown], table, args.markdown)
    if args.plot is not None:
        draw(found, args)


if __name__ == "__main__":
    main()
