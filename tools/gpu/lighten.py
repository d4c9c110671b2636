"""A checkpoint of a pre-training without the descent's momentum: half as large.

    python tools/gpu/lighten.py STAGE.pt LIGHTER.pt

`--resume` goes on from it with the same networks at the same step; the first ten steps or so
descend without the momentum that they would have had. Any other checkpoint is copied as it is:
Adam's moments are not made up for so soon.
"""

import argparse
from pathlib import Path
from typing import Any

import torch


def without_momentum(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a pre-training, its optimizer as before the first step."""
    optimizers = {
        name: state | {"optimizer": state["optimizer"] | {"state": {}}}
        for name, state in checkpoint["optimizers"].items()
    }
    return checkpoint | {"optimizers": optimizers}


def main() -> None:
    """Write the lighter one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("lighter", type=Path)
    arguments = parser.parse_args()
    checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    if arguments.checkpoint.name.startswith("pretrain_"):
        checkpoint = without_momentum(checkpoint)
    torch.save(checkpoint, arguments.lighter)


if __name__ == "__main__":
    main()
