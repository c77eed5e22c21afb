"""What the README tells a user is what is tested."""

import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMAND = r"\w+(?:-\w+)*"


def test_the_two_commands_are_the_ones_ci_runs():
    opening = README.split("\n## ")[0]
    commands = re.findall(r"^    (make [\w-]+)", opening, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text()
    for command in [*commands, "make demo-train"]:
        assert re.search(rf"^{command}(?![\w-])", ci, re.MULTILINE), f"CI does not run {command}"
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_embedding_example_runs_in_ten_lines(small_bundle, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    (tmp_path / "sky.bundle").symlink_to(small_bundle)
    (tmp_path / "example.py").write_text(example)
    finished = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[1] == "(16, 16, 3) uint8"


def test_the_lines_on_editing_and_playing_run(small_bundle):
    """All but the one that begins with a picture, for which the bundle would need an encoder."""
    import math

    import numpy as np

    from styleinv.runtime import Bundle, Player, Rollout, RolloutBatch, Sessions

    listed = README.split("so clips can be edited like one", 1)[1].split("\n\n")[1]
    lines = [line.split("  #")[0].strip() for line in listed.splitlines()]
    assert len(lines) == 9
    with Sessions(Bundle.open(small_bundle)) as sessions:
        rollout, another = Rollout(sessions, seed=7), Rollout(sessions, seed=8)
        names = {"rollout": rollout, "another": another, "sessions": sessions, "sin": math.sin}
        names |= {"Rollout": Rollout, "RolloutBatch": RolloutBatch, "Player": Player}
        names["frame"] = np.empty((*rollout.size, 3), np.uint8)
        for line in lines:
            if "image=" not in line:
                result = eval(line, names)
                if isinstance(result, Player):
                    assert next(result).shape == names["frame"].shape
                    result.close()
        assert eval(lines[0], names).shape == (50, *rollout.size, 3)


def test_commands_and_options_in_the_readme_exist():
    from styleinv.runtime.cli import COMMANDS

    used = set(re.findall(rf"\bstyleinv ({COMMAND})", re.sub(r"```python.*?```", "", README, flags=re.DOTALL)))
    assert {"train", "export", "stream", "init"} <= used <= COMMANDS.keys()
    for command, option in re.findall(rf"`?styleinv (kernels \w+|{COMMAND})[^`\n#]*?(--\w+)", README):
        assert option == "--help" or option in help_of(command), f"styleinv {command} {option}"


@functools.cache
def help_of(command):
    program = "import sys; from styleinv.runtime.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", program, *command.split(), "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
