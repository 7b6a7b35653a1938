"""Build a bundle's `models/model.pt` from the weights of its parts.

    python benchmarks/assemble_bundle.py --weights ../weights [--bundle bundles/multimodal_fusion]

`<weights>/{registration,harmonization,fusion}_<d>d.pt` are plain state dicts of the parts. A part
that is missing keeps what the bundle's present `model.pt` holds, or its untrained start with
`--untrained`.
"""

import argparse
import hashlib
import io
import os
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

PARTS = ("registration", "harmonization", "fusion")
LIMIT_MIB = 16


def main() -> int:
    """Assemble, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/multimodal_fusion"))
    parser.add_argument("--untrained", action="store_true", help="allow parts without weights")
    args = parser.parse_args()
    config = ConfigParser()
    config.read_config(str(args.bundle / "configs" / "inference.json"))
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def")
    target = args.bundle / "models" / "model.pt"
    packaged = {}
    if target.is_file() and not args.untrained:
        packaged = torch.load(target, weights_only=True)
    dims = config["network_def"]["registration"]["spatial_dims"]
    for part in PARTS:
        source, module = args.weights / f"{part}_{dims}d.pt", network.get_submodule(part)
        if source.is_file():
            module.load_state_dict(torch.load(source, weights_only=True))
            print(f"{part}: {source}")
        elif packaged:
            start = f"{part}."
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in packaged.items() if k.startswith(start)}
            )
            print(f"{part}: as in {target}")
        elif args.untrained:
            print(f"{part}: untrained")
        else:
            print(f"{part}: no {source}; train it, or pass --untrained", file=sys.stderr)
            return 1
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # a file's name would go into the archive and change its bytes
    torch.save(state, buffer)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_bytes(buffer.getvalue())
    aside.replace(target)
    size = target.stat().st_size / 2**20
    parameters = sum(value.numel() for value in state.values())
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {parameters} parameters, {size:.1f} MiB, sha256 {digest}")
    return 0 if size < LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
