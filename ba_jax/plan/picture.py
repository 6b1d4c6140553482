"""A bar of a device's memory by what is in it, as PNG."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ba_jax.plan.report import Plan, size

_WIDTH, _BAR, _MARGIN, _LINE = 900, 60, 24, 24
# Distinct for the colour-blind too (Okabe and Ito 2008).
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00", "#cc79a7", "#999999")


def parts(plan: Plan) -> dict[str, int]:
    """What the bar is made of: kinds of arguments, then the rest of the peak; bytes."""
    found = dict(plan.kinds)
    if plan.compiled:
        memory = plan.compiled.memory
        found["padding"] = max(memory.arguments - sum(plan.kinds.values()), 0)
        found |= {"temporaries": memory.temporaries, "outputs": memory.outputs}
        found["program"] = memory.code
    else:
        found["temporaries and program"] = max(plan.peak_bytes - sum(plan.kinds.values()), 0)
    return {kind: count for kind, count in found.items() if count}


def draw(plan: Plan, path: Path | str) -> None:
    """Writes the picture.

    Raises:
      OSError: it cannot be written.
    """
    found = parts(plan)
    height = 2 * _MARGIN + 3 * _LINE + _BAR + _LINE * len(found)
    image = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    title = f"{plan.what}, {plan.topology.name}: {size(plan.peak_bytes)} of {size(plan.hbm_bytes)}"
    pen.text((_MARGIN, _MARGIN), title, "black", font)
    top, inner = _MARGIN + 2 * _LINE, _WIDTH - 2 * _MARGIN
    scale = inner / max(plan.peak_bytes, plan.hbm_bytes)
    end = _MARGIN + plan.hbm_bytes * scale
    pen.rectangle((_MARGIN, top, end, top + _BAR), outline="black")
    left, line = float(_MARGIN), top + _BAR + _LINE
    for number, (kind, count) in enumerate(found.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        pen.rectangle((left, top, left + count * scale, top + _BAR), colour)
        left += count * scale
        pen.rectangle((_MARGIN, line + 4, _MARGIN + 14, line + 18), colour)
        pen.text((_MARGIN + 24, line), f"{kind}: {size(count)}", "black", font)
        line += _LINE
    pen.line((end, top - 8, end, top + _BAR + 8), "red", 3)
    image.save(path, "PNG")
