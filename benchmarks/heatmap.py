"""The heat map in the docs: models by category on the questions of MMLU-Pro that the starter was not trained on.

    python benchmarks/heatmap.py --data FOLDER [--plot docs/img/heatmap.png]

Writes those questions to a file and runs `p2l leaderboard` on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.prompts import as_turns
from p2l_plugins.training.config import read_config
from p2l_plugins.votes.votes import held_out

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of mmlupro_correctness.parquet (Apache-2.0)")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "img" / "heatmap.png")
    options = parser.parse_args()
    recipe = read_config(ROOT / "examples" / "starter.yaml")
    prompts, table = read_prompts(options.data / "mmlupro_correctness.parquet")
    out = held_out([as_turns(prompt) for prompt in prompts], recipe.held_out, recipe.seed)
    rows = [
        {"prompt": prompt, "category": category}
        for prompt, category, test in zip(prompts, table["category"], out, strict=True)
        if test
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heldout.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = ["leaderboard", "starter", str(path), "--by", "category", "--plot", str(options.plot), "--top", "20"]
        result = subprocess.run([sys.executable, "-m", "p2l_plugins.cli", *command], check=True, capture_output=True)
    print(result.stdout.decode())


if __name__ == "__main__":
    main()
