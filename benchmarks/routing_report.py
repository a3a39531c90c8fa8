"""Tables and figure of `routing_curve.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2l_plugins.files.figures import new_figure, save_figure


def tables(result: dict[str, Any]) -> str:
    """The tables of a data set."""
    best, cheap = result["best_single"], result["cheapest"]
    lines = [
        f"### {result['data']}: {result['prompts']} held-out prompts, {len(result['models'])} models\n",
        "| policy | score | cost, USD per 1,000 requests |",
        "|:---|---:|---:|",
    ]
    rows = [(f"always {best} (best single of the training part)", result["singles"][best])]
    rows += [(f"always {cheap} (cheapest)", result["singles"][cheap]), ("random", result["random"])]
    rows += [("P2L, rule best", result["p2l_best"])]
    rows += [(f"P2L, paced at {1e3 * one['budget']:.4g}", one["paced"]) for one in result["curve"]]
    for one in result["complexity"]:
        if one["plain"]:
            rows.append(("complexity router, plain ladder: " + " / ".join(one["tiers"]), one["point"]))
    lines += [f"| {name} | {score:.4f} | {1e3 * cost:.4g} |" for name, (score, cost) in rows]
    lines += [
        f"| oracle, any cost | {result['oracle_best']:.4f} | |",
        "\n| budget, USD per 1,000 | paced: score (cost) | LP per request at that cost | paced − LP | oracle |",
        "|---:|---:|---:|---:|---:|",
    ]
    for one in result["curve"]:
        lines.append(
            f"| {1e3 * one['budget']:.4g} | {one['paced'][0]:.4f} ({1e3 * one['paced'][1]:.4g}) | {one['lp'][0]:.4f} "
            f"| {one['gain_over_lp']:+.4f} ± {one['stderr']:.4f} | {one['oracle'][0]:.4f} |"
        )
    shares = ", ".join(f"{tier} {n}" for tier, n in result["tiers"].items())
    lines += [
        f"\nComplexity router (prompts: {shares}); P2L paced at the same cost:\n",
        "| tiers | cost, USD per 1,000 | complexity router | P2L | difference |",
        "|:---|---:|---:|---:|---:|",
    ]
    for one in result["complexity"]:
        ladder = " / ".join(one["tiers"]) + (" (plain)" if one["plain"] else "")
        lines.append(
            f"| {ladder} | {1e3 * one['point'][1]:.4g} | {one['point'][0]:.4f} | {one['paced'][0]:.4f} "
            f"| {one['gain']:+.4f} ± {one['stderr']:.4f} |"
        )
    lines += [
        f"\nA stream of {result['requests']} requests with a shifting mix:\n",
        "| budget, USD per 1,000 | mean cost / budget − 1 | score | LP per request at that cost |",
        "|---:|---:|---:|---:|",
    ]
    for one in result["stream"]:
        lines.append(f"| {1e3 * one['budget']:.4g} | {one['off']:+.2%} | {one['score']:.4f} | {one['lp']:.4f} |")
    return "\n".join(lines)


def figure(results: list[dict[str, Any]], path: Path) -> None:
    """Draws a panel per data set."""
    drawn = new_figure(figsize=(11, 5.2))
    panels = drawn.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        for key, label, colour, style in (
            ("oracle", "oracle, at what P2L spent", "#999999", ":"),
            ("paced", "P2L, paced budget", "#1f5fa8", "-"),
        ):
            points = [one[key] for one in result["curve"]]
            axes.plot([1e3 * p[1] for p in points], [p[0] for p in points], style, color=colour, label=label)
        tuned = [one["point"] for one in result["complexity"] if not one["plain"]]
        label = "LiteLLM's complexity router, tiers tuned on the training part"
        axes.plot([1e3 * p[1] for p in tuned], [p[0] for p in tuned], "--", color="#d9822b", label=label)
        plain = next(one["point"] for one in result["complexity"] if one["plain"])
        label = "LiteLLM's complexity router, tiers by price"
        axes.plot(1e3 * plain[1], plain[0], "D", color="#d9822b", markersize=7, label=label)
        singles = list(result["singles"].values())
        axes.plot([1e3 * c for _, c in singles], [s for s, _ in singles], ".", color="#999999", label="a model alone")
        for key, mark, name in (
            ("best_single", "*", "always the best single"),
            ("cheapest", "v", "always the cheapest"),
        ):
            score, cost = result["singles"][result[key]]
            axes.plot(1e3 * cost, score, mark, color="black", markersize=9, label=name)
        axes.plot(1e3 * result["random"][1], result["random"][0], "x", color="#b03030", markersize=8, label="random")
        low = min(*(one["paced"][0] for one in result["curve"]), result["random"][0], plain[0])
        spent = [1e3 * cost for _, cost in singles]
        axes.set(
            xscale="log",
            xlim=(0.8 * min(spent), 1.4e3 * max(result["singles"][result["best_single"]][1], result["p2l_best"][1])),
            ylim=(low - 0.03, None),
            title=f"{result['data']}: {result['prompts']} held-out prompts, {len(result['models'])} models",
            xlabel="USD per 1,000 requests",
            ylabel="share answered correctly",
        )
        axes.grid(alpha=0.25, which="both")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save_figure(drawn, path, dpi=100)
