"""Every measured figure of docs/results.md, one program after the other: ``make bench``.

    make bench                          all of it, about an hour and a quarter on two cores
    make bench ARGS="parity train"      some of it

PROGRAMS says how long each takes; ``python -m bench.NAME --help`` what it measures. The first that does not
hold what is required of it ends the rest. ``bench.study_tasks DIR`` reads a study that was run: not in `all`.
"""

import argparse
import subprocess
import sys

PROGRAMS = {  # -> minutes on two quiet cores
    "codec_wer": 8,
    "coverage": 1,
    "house": 1,
    "parity": 1,
    "train": 20,
    "gpu": 1,
    "kimi_share": 3,
    "judge_limits": 5,
    "judge_throughput": 1,
    "judge_faults": 15,
    "judge_trouble": 25,
}


def main() -> int:
    """Run the named programs, or all. Returns the first exit status that is not 0."""
    listed = "".join(f"\n  {name:18} {minutes} min" for name, minutes in PROGRAMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="print the measured figures",
        epilog=f"programs:{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: all")
    wanted = parser.parse_args().programs or list(PROGRAMS)
    for name in wanted:
        if name not in PROGRAMS:
            parser.error(f"no program named {name!r}: choose from {', '.join(PROGRAMS)}")
    for name in wanted:
        print(f"\n== python -m bench.{name}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
