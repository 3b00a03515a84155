"""What a recipe reaches, over several seeds: `python benchmarks/recipes.py --recipe smollm2_tools --seeds 0 1 2`."""

from __future__ import annotations

import argparse

from harness import finetune, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="further overrides, such as kpool.k=8")
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        summary = finetune(f"recipe={arguments.recipe}", f"seed={seed}", *arguments.overrides)
        kept = ("evaluation", "wall_s", "samples", "tokens", "tokens_per_s", "goodput", "rounds", "replicas")
        runs.append({"seed": seed, **{key: summary[key] for key in kept}})
        print(seed, summary["evaluation"], summary["wall_s"], flush=True)
    save(arguments.recipe, {"overrides": arguments.overrides, "runs": runs})


if __name__ == "__main__":
    main()
