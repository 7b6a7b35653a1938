"""``python -m fusion_pipeline.cli``: the same as the command ``fusion-pipeline``."""

import sys

from fusion_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
