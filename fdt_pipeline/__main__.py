"""`python -m fdt_pipeline VERB` is the same as `fdt-pipeline VERB`."""

import sys

from fdt_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
