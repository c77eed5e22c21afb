"""What the README tells a user is what is tested."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_the_ones_ci_runs():
    opening = README.split("\n## ")[0]
    commands = re.findall(r"^    (make \w+)", opening, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert re.search(rf"^{command}\b", ci, re.MULTILINE), f"CI does not run {command}"
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_embedding_example_runs_in_ten_lines(small_bundle, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    (tmp_path / "sky.bundle").symlink_to(small_bundle)
    (tmp_path / "example.py").write_text(example)
    finished = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[1] == "(16, 16, 3) uint8"


def test_commands_and_options_in_the_readme_exist():
    from styleinv.runtime.cli import COMMANDS

    used = set(re.findall(r"\bstyleinv (\w+)", re.sub(r"```python.*?```", "", README, flags=re.DOTALL)))
    assert {"train", "export", "stream", "init"} <= used <= COMMANDS.keys()
    for command, option in re.findall(r"`?styleinv (\w+)[^`\n#]*?(--\w+)", README):
        program = "import sys; from styleinv.runtime.cli import main; main(sys.argv[1:])"
        shown = subprocess.run(
            [sys.executable, "-c", program, command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert option == "--help" or option in shown, f"styleinv {command} {option}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
