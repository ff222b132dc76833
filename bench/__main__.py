"""Every measured figure of the README, one program after the other: ``make bench``.

make bench                      all of it (the three training runs take about half an hour)
make bench ARGS="parity"        one of: codec_wer, parity, train, gpu
"""

import subprocess
import sys

PROGRAMS = ("codec_wer", "parity", "train", "gpu")


def main() -> int:
    """Run the named programs, or all. Returns the first exit status that is not 0."""
    wanted = sys.argv[1:] or list(PROGRAMS)
    unknown = [name for name in wanted if name not in PROGRAMS]
    if unknown:
        print(f"bench: no program named {unknown[0]!r}: choose from {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    for name in wanted:
        print(f"\n== python -m bench.{name}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
