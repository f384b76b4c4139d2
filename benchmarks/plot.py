"""A picture of what was measured; matplotlib comes with the extra `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MISSING = "--plot needs matplotlib: `pip install -e '.[bench]'`, or `pip install matplotlib`"


def draw(results: dict[str, Any], path: Path) -> bool:
    """Write the picture to `path`, and whether there was anything to draw; ImportError where matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional library
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(MISSING) from error
    mpl.use("Agg")
    known = (("reset", _resets), ("batches", _batches), ("growth", _growth))
    panels = [(name, panel) for name, panel in known if name in results]
    if not panels:
        return False
    figure, places = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), squeeze=False)
    for axes, (name, panel) in zip(places[0], panels, strict=True):
        panel(axes, results[name]["rows"])
        axes.set_title(f"{axes.get_title()}\nfloor {results[name]['floor_p50_ms']:.2f} ms, {results[name]['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _resets(axes: Any, rows: list[dict[str, Any]]) -> None:
    shown = [row for row in rows if row["durable"] and row.get("p50_ms") is not None]
    axes.barh([row["contestant"] for row in shown][::-1], [row["p50_ms"] for row in shown][::-1], color="#4477aa")
    axes.set_xscale("log")
    axes.set_xlim(left=min(row["p50_ms"] for row in shown) / 2)
    axes.set_xlabel("ms, median")
    axes.set_title("One durable reset of the same records")


def _batches(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.barh([row["what"] for row in rows][::-1], [row["resets_per_s"] for row in rows][::-1], color="#228833")
    axes.set_xlabel("guarded durable resets a second")
    axes.set_title("Groups, and callers at once")


def _growth(axes: Any, rows: list[dict[str, Any]]) -> None:
    sized = [row for row in rows if str(row["what"]).endswith(" users")]
    users = [int(row["what"].split()[0]) for row in sized]
    for figure in ("reset_p50_ms", "open_p50_ms", "read_p50_ms"):
        axes.plot(users, [row[figure] for row in sized], marker="o", label=figure.replace("_p50_ms", ""))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("users")
    axes.set_ylabel("ms, median")
    axes.legend()
    axes.set_title("Growth")
