"""Profiles as files."""

import json

import pytest

from advisor.errors import FileProblem
from advisor.profiler.stored import load_profile, save_profile
from advisor.profiler.traffic import read_traffic
from advisor.types import Gpu, Model, Profile


@pytest.fixture
def profile():
    traffic, sources = read_traffic("chat")
    model = Model(
        name="m", architecture="LlamaForCausalLM", layers=2, hidden=64, intermediate=128, vocab=1000, heads=4, kv_heads=2,
        head_dim=16, attention="gqa", attention_layers=2, mlp_layers=2,
    )  # fmt: skip
    return Profile(
        gpu=Gpu(id=None, name="gpu"), model=model, traffic=traffic, measured={"accuracy_loss_pct": -0.2}, sources=sources
    )


def test_a_profile_comes_back_as_it_was(tmp_path, profile):
    path = tmp_path / "folder" / "profile.json"
    save_profile(profile, path)
    assert load_profile(path) == profile
    assert list(path.parent.iterdir()) == [path]


def test_a_bare_profile_and_a_report_are_read_too(tmp_path, profile):
    path = tmp_path / "p.json"
    path.write_text(profile.model_dump_json())
    assert load_profile(path) == profile
    path.write_text(json.dumps({"schema_version": 1, "profile": profile.model_dump(mode="json"), "plan": {}, "findings": []}))
    assert load_profile(path) == profile


def changed(profile, path, change):
    content = {"schema_version": 1, "profile": profile.model_dump(mode="json")}
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema_version=2), "schema version 2"),
        (lambda c: c.update(schema_version=True), "schema version True"),
        (lambda c: c.pop("schema_version"), "schema version None"),
        (lambda c: c.update(extra=1), "unknown keys beside the profile: extra"),
        (lambda c: c.update(profile=[]), "no profile in it"),
        (lambda c: c["profile"]["gpu"].update(memory_gb=80), "gpu.memory_gb is no key of a profile; did you mean memory_gib?"),
        (lambda c: c["profile"]["traffic"]["isl"].update(p95=1), "traffic.isl.p95 is no key of a profile; did you mean p9"),
        (lambda c: c["profile"].update(colour="red"), "colour is no key of a profile"),
        (lambda c: c["profile"].pop("gpu"), "gpu: field required"),
        (lambda c: c["profile"]["model"].update(layers="many"), "model.layers"),
        (lambda c: c["profile"]["traffic"]["isl"].update(mean=-1), "traffic.isl.mean is -1"),
        (lambda c: c["profile"]["model"].update(layers=-1), "model.layers is -1"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_place(tmp_path, profile, change, says):
    path = changed(profile, tmp_path / "p.json", change)
    with pytest.raises(FileProblem) as caught:
        load_profile(path)
    assert says in caught.value.what and str(path) in caught.value.where and caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "no JSON object"),
        ("3", "no JSON object"),
        ('{"gpu": NaN}', "NaN is not a JSON value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"gpu": ' + "9" * 10_000 + "}", "number too long"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, says):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(FileProblem) as caught:
        load_profile(path)
    assert says in caught.value.what


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "p.json"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)
    with pytest.raises(FileProblem, match="MiB"):
        load_profile(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileProblem):
        load_profile(tmp_path / "none.json")
