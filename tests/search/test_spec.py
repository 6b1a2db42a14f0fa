"""Study files: what they say, how they are overruled, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsevit.errors import UserError
from sparsevit.search.bounds import Limit, parse_limit, resolve
from sparsevit.search.duration import parse_duration
from sparsevit.search.score import missing, scored
from sparsevit.search.spec import StudySpec

MINIMAL = 'name = "tiny"\n[latency]\nmax = 35.0\n'
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return path

    return to_file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        StudySpec.load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults(write: Write) -> None:
    spec = StudySpec.load(write(MINIMAL))
    assert spec.latency.max == Limit(35.0)
    assert spec.supernet.evaluator == "sparsevit.openmmlab:detector_evaluator"
    assert spec.supernet.arguments == {}
    assert len(spec.space.of((2, 2, 6, 2))) == 120_285
    assert spec.target.target().size == (448, 448)
    assert spec.folder() == Path("runs/tiny")
    assert spec.url() == "sqlite:///runs/tiny/study.db"
    assert spec.url("elsewhere") == "sqlite:///elsewhere/study.db"


def test_files_are_found_beside_the_study(write: Write, tmp_path: Path) -> None:
    (tmp_path / "config.py").touch()
    text = MINIMAL + '[supernet]\nconfig = "config.py"\ncheckpoint = "builtin:a/b.py"\n[supernet.options]\nbatch = 4\n'
    spec = StudySpec.load(write(text))
    assert spec.supernet.arguments == {
        "config": str(tmp_path / "config.py"),
        "checkpoint": "builtin:a/b.py",
        "options": {"batch": 4},
    }


def test_overrides_are_toml_or_else_text(write: Write) -> None:
    given = (
        "search.trials=7", "latency.max=70%", "name=other", "target.size=[224, 448]", 'target.device="cpu"',
        "accuracy.metric = segm_mAP", "storage.url=sqlite:///x.db",
    )  # fmt: skip
    spec = StudySpec.load(write(MINIMAL), given)
    assert spec.search.trials == 7
    assert spec.latency.max == Limit(0.7, is_share=True)
    assert spec.name == "other"
    assert spec.target.size == (224, 448)
    assert spec.accuracy.metric == "segm_mAP"
    assert spec.url() == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trails=5", ["unknown key search.trails", "did you mean trials?", "population"]),
        ("serach.trials=5", ["unknown key serach", "did you mean search?"]),
        ("search.trials=many", ["search.trials = 'many'", "valid integer"]),
        ("search.trials=true", ["search.trials = True", "valid integer"]),
        ("search.trials=0", ["search.trials = 0", "greater than or equal to 1"]),
        ("search.sampler=magic", ["search.sampler = 'magic'", "'nsga2'"]),
        ("latency.max=-3", ["latency.max = -3", "above 0"]),
        ("latency.max=fast", ["latency.max = 'fast'", "70%"]),
        ("latency.min=40", ["latency", "min 40 ms is above max 35 ms"]),
        ("target.device=tpu", ["target", "tpu", "auto, cpu, or cuda:N"]),
        ("target.dtype=int4", ["target", "int4", "float32"]),
        ("target.size=448", ["target.size = 448", "height and width"]),
        ("target.size=[448]", ["target.size"]),
        ("space.ratios=[0, 1.5]", ["space.ratios", "1.5"]),
        ("space.ratios=[0.2, 0.1]", ["space.ratios", "increase strictly"]),
        ("supernet.config=absent/config.py", ["supernet.config = 'absent/config.py'", "no such file"]),
        ("supernet.checkpoint=weights.safetensors", ["supernet.checkpoint", "no such file"]),
        ("supernet.evaluator=nonsense", ["supernet.evaluator = 'nonsense'", "package.module:factory"]),
        ("name=../up", ["name = '../up'", "letters"]),
        ("name.sub=1", ["name is a value, not a table"]),
        ("space.layers.head=0.5", ["space.layers", "'head' is no layer", "s3.2 for the second one of stage 3"]),
        ("space.layers.s1=0.55", ["layers.s1: 0.55 is not among the ratios 0, 0.1"]),
        ("space.layers.s1=[0.2, 0.1]", ["layers.s1", "increase strictly"]),
        ("space.layers.s1=[]", ["layers.s1", "increase strictly"]),
        ("space.layers.s1=often", ["space.layers.s1", "'often'", "valid number"]),
        ("accuracy.metric=[]", ["accuracy.metric = []", "one metric or more"]),
        ('accuracy.metric=["a", "a"]', ["accuracy.metric", "named twice"]),
        ("accuracy.images=some", ["accuracy.images = 'some'", "valid integer"]),
        ("storage.url=postgresql://me:${NOT_SET}@h/d", ["storage.url", "variable NOT_SET is not set: export NOT_SET"]),
        ("search.time_limit=soon", ["search.time_limit = 'soon'", '"45 min"']),
        ("search.time_limit=0", ["search.time_limit = 0", "above 0"]),
        ("search.time_limit=true", ["search.time_limit = True", "seconds as a number"]),
        ("storage.url=5", ["storage.url = 5", "valid string"]),
        ("trials", ["--set 'trials'", "key.sub=value"]),
    ],
)
def test_refusals_name_key_value_and_remedy(write: Write, override: str, words: list[str]) -> None:
    path = write(MINIMAL)
    text = refusal(path, override)
    for word in words:
        assert word in text
    if "=" in override and "name.sub" not in override:
        assert str(path) in text


def test_missing_keys_and_files(write: Write, tmp_path: Path) -> None:
    assert "latency is missing; a table with max" in refusal(write('name = "tiny"\n'))
    assert "latency.max is missing" in refusal(write('name = "tiny"\n[latency]\nmin = 3\n'))
    assert "is not TOML" in refusal(write("name = tiny\n"))
    assert "there is no study file" in refusal(tmp_path / "absent.toml")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("70%", Limit(0.7, True)), (" 62.5 %", Limit(0.625, True)), ("35 ms", Limit(35.0)), (35, Limit(35.0))],
)
def test_limits(text: object, limit: Limit) -> None:
    assert parse_limit(text) == limit
    assert parse_limit(str(limit)) == limit


def test_layers_are_named_as_one_likes(write: Write) -> None:
    text = MINIMAL + '[space]\nratios = [0, 0.3, 0.5]\n[space.layers]\ns1 = 0.5\ns3 = [0, 0.3]\n"s3.2" = 0.3\n'
    spec = StudySpec.load(write(text), ["space.layers.s3.3=0.3", "space.layers.s1=0"])
    assert spec.space.layers == {"s1": (0,), "s3": (0, 0.3), "s3.2": (0.3,), "s3.3": (0.3,)}
    space = spec.space.of((2, 2, 6, 2))
    assert str(spec.space.restriction(space)) == "s1=0 s3.1=0,0.3 s3.2=0.3 s3.3=0.3"


def test_several_metrics_are_one_name(write: Write) -> None:
    spec = StudySpec.load(write(MINIMAL), ['accuracy.metric=["bbox_mAP", "segm_mAP"]', "accuracy.images=all"])
    assert spec.accuracy.metric == "bbox_mAP+segm_mAP"
    assert spec.accuracy.images is None
    assert scored({"bbox_mAP": 0.4, "segm_mAP": 0.2}, spec.accuracy.metric)["bbox_mAP+segm_mAP"] == pytest.approx(0.3)
    assert missing({"bbox_mAP": 0.4}, spec.accuracy.metric) == ["segm_mAP"]


def test_variables_stand_for_what_is_not_to_be_written(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALS_PASSWORD", "s3cr/et@")
    path = write(MINIMAL + '[storage]\nurl = "postgresql+psycopg://me:${TRIALS_PASSWORD}@h/d"\n')
    spec = StudySpec.load(path)
    assert spec.url() == "postgresql+psycopg://me:s3cr%2Fet%40@h/d"
    assert "s3cr" not in repr(spec)
    assert "hunter2" not in refusal(path, "storage.url=postgresql://me:hunter2@${GONE}/d")
    assert "hunter2" not in refusal(path, "storage url=postgresql://me:hunter2@h/d")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90 s", 90), ("1.5min", 90), ("2h 30min", 9000), ("1d", 86400), (12, 12), ("2h30m", 9000)]
)
def test_durations(write: Write, text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert StudySpec.load(write(MINIMAL), [f"search.time_limit={text}"]).search.time_limit == seconds
    assert StudySpec.load(write(MINIMAL), ["search.time_limit=none"]).search.time_limit is None


def test_limits_in_ms() -> None:
    bounds = resolve(Limit(0.7, True), Limit(10.0), 40.0)
    assert (bounds.min_ms, bounds.max_ms) == (10.0, pytest.approx(28.0))
    with pytest.raises(UserError, match=r"latency\.min 30 ms is above latency\.max 70%: 30 ms against 28 ms"):
        resolve(Limit(0.7, True), Limit(30.0), 40.0)
