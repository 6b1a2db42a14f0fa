"""Study files that extend others: whose value counts, where it stands, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsevit.errors import UserError
from sparsevit.search.bounds import Limit
from sparsevit.search.spec import StudySpec
from sparsevit.search.study_file import read_settings

BASE = """
name = "base"
[supernet]
config = "net.py"
[latency]
max = "60%"
min = 5
[search]
trials = 50
seed = 3
[space.layers]
s1 = 0.5
s3.1 = [0, 0.1]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mine.toml` extends `common/base.toml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "base.toml").write_text(BASE)
    (tmp_path / "common" / "net.py").touch()
    return tmp_path


def write(text: str, name: str = "mine.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        StudySpec.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_own_values_count_before_inherited_ones(folder: Path) -> None:
    path = write('extends = "common/base.toml"\nname = "mine"\n[latency]\nmax = 35\n[space.layers]\ns3.1 = 0\n')
    spec = StudySpec.load(path, ["search.trials=7", "latency.min=none"])
    assert (spec.name, spec.latency.max, spec.latency.min) == ("mine", Limit(35.0), None)
    assert (spec.search.trials, spec.search.seed) == (7, 3)
    assert spec.space.layers == {"s1": (0.5,), "s3.1": (0,)}
    assert spec.supernet.config == str(folder / "common" / "net.py"), "relative to the file that names it"
    places = {".".join(key): source.name for key, source in spec.settings.sources.items()}
    assert places == {
        "name": "mine.toml",
        "latency.max": "mine.toml",
        "latency.min": "--set",
        "supernet.config": "common/base.toml",
        "search.trials": "--set",
        "search.seed": "common/base.toml",
        "space.layers.s1": "common/base.toml",
        "space.layers.s3.1": "mine.toml",
    }


def test_a_chain_of_files_and_a_study_that_comes_with_the_package() -> None:
    write('extends = "common/base.toml"\n[search]\ntrials = 40\n', "middle.toml")
    path = write('extends = "middle.toml"\nname = "mine"\n')
    assert StudySpec.load(path).search.trials == 40
    digits = StudySpec.load(write('extends = "builtin:digits.toml"\nname = "mine"\n'))
    assert digits.supernet.checkpoint == "builtin:digits"
    assert "there are: " in refusal(write('extends = "builtin:nothing.toml"\n'))


def test_a_value_replaces_a_table_and_a_table_a_value() -> None:
    write('[supernet]\noptions = 1\nextra = { a = 1 }\n', "base.toml")  # fmt: skip
    settings = read_settings(write('extends = "base.toml"\n[supernet]\noptions = { b = 2 }\nextra = 3\n'))
    assert settings.tables == {"supernet": {"options": {"b": 2}, "extra": 3}}
    assert sorted(settings.sources) == [("supernet", "extra"), ("supernet", "options", "b")]


def test_circles_are_refused() -> None:
    write('extends = "mine.toml"\n', "other.toml")
    text = refusal(write('extends = "other.toml"\n'))
    assert "other.toml: extends = 'mine.toml'" in text
    assert "in a circle, mine.toml -> other.toml -> mine.toml" in text
    assert "in a circle" in refusal(write('extends = "mine.toml"\n'))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "gone.toml"\n', ["mine.toml: extends = 'gone.toml'", "no such file"]),
        ("extends = 3\n", ["extends = 3", "name one study file"]),
        ('extends = ["a.toml"]\n', ["extends = ['a.toml']", "name one study file"]),
        ('extends = "common"\n', ["no such file"]),
        ('extends = "common/net.py"\nname = "mine"\n', ["latency is missing"]),
    ],
)
def test_what_cannot_be_extended(text: str, words: list[str]) -> None:
    found = refusal(write(text))
    for word in words:
        assert word in found


def test_the_file_that_holds_a_wrong_value_is_named(folder: Path) -> None:
    path = write('extends = "common/base.toml"\nname = "mine"\n')
    for change, words in (
        ("trials = 50", "trials = 0"),
        ("max = ", "most = "),
    ):
        (folder / "common" / "base.toml").write_text(BASE.replace(change, words))
        assert refusal(path).startswith("common/base.toml: ")
    (folder / "common" / "base.toml").write_text(BASE)
    assert refusal(path, "search.trials=0").startswith("mine.toml with --set: search.trials = 0")
    assert refusal(path, "target.device=tpu").startswith("mine.toml with --set: target")
    (folder / "common" / "base.toml").write_text("name = nothing")
    assert refusal(path).startswith("common/base.toml is not TOML")
