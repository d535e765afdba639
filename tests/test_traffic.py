"""Named traffic profiles and flags."""

import statistics
from pathlib import Path

import pytest
import yaml

from advisor.errors import FileProblem, TrafficProblem, UnknownName
from advisor.library import PROFILES, profile_names
from advisor.profiler.trace import read_trace
from advisor.profiler.traffic import adjust, read_traffic

TRACES = Path(__file__).parents[1].parent / "shared" / "traces"
NAMES = ("chat", "rag", "summarise", "code", "agent", "batch", "long-context", "interactive")
FACTS = ("isl", "osl", "concurrency", "rate", "burstiness", "length_dispersion", "shared_prefix")


def test_the_promised_profiles_are_there():
    assert set(NAMES) == set(profile_names("traffic"))


@pytest.mark.parametrize("name", NAMES)
def test_each_number_of_a_profile_has_a_source_and_a_basis(name):
    data = yaml.safe_load((PROFILES / "traffic" / f"{name}.yaml").read_text())
    traffic, sources = read_traffic(name)
    known = {fact for fact in FACTS if data[fact] is not None} | {"lengths"}
    assert {fact.removeprefix("traffic.") for fact in sources} == known == set(data["sources"])
    assert {told["basis"] for told in data["sources"].values()} <= {"measured", "published", "assumed"}
    assert traffic.notes and traffic.name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_a_profile_agree_with_each_other(name):
    traffic, _ = read_traffic(name)
    assert 0 < len(traffic.lengths) <= 512
    for at, lengths in ((0, traffic.isl), (1, traffic.osl)):
        assert lengths.p50 <= lengths.p90 <= lengths.p99 <= lengths.max
        sample = [pair[at] for pair in traffic.lengths]
        assert statistics.fmean(sample) == pytest.approx(lengths.mean, rel=0.01)
        assert min(sample) >= 1 and max(sample) <= lengths.max
    assert traffic.concurrency is None or traffic.rate is None


def test_code_is_the_azure_trace():
    if not TRACES.is_dir():
        pytest.skip("no traces here")
    traced, _ = read_trace(str(TRACES / "azure_2023_code.csv"))
    named, _ = read_traffic("code")
    for fact in ("isl", "osl"):
        for figure in ("mean", "p50", "p90", "p99", "max"):
            assert getattr(getattr(named, fact), figure) == pytest.approx(getattr(getattr(traced, fact), figure), abs=0.06)
    assert named.burstiness == pytest.approx(traced.burstiness, rel=0.01)
    assert named.length_dispersion == pytest.approx(traced.length_dispersion, rel=0.01)


@pytest.mark.parametrize("alias", ["interactive-single-stream", "Interactive", "single-stream"])
def test_other_names_lead_to_the_same_profile(alias):
    assert read_traffic(alias) == read_traffic("interactive")


def test_a_typo_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownName, match="unknown traffic: 'chatt'") as caught:
        read_traffic("chatt")
    assert "did you mean chat" in caught.value.hint and "long-context" in caught.value.hint


@pytest.mark.parametrize("path", ["nowhere.csv", "some/where", "x.jsonl.gz"])
def test_a_path_that_is_not_there_is_called_a_path(path):
    with pytest.raises(FileProblem, match="no such trace"):
        read_traffic(path)


@pytest.mark.parametrize("name", ["a" * 5000, "nul\0byte", "", "_columns", "_aliases"])
def test_odd_names_are_unknown(name):
    with pytest.raises((UnknownName, TrafficProblem, FileProblem)):
        read_traffic(name)


@pytest.mark.parametrize("flag", ["isl", "osl", "concurrency", "rate"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e15])
def test_impossible_numbers_are_refused_by_their_flag(flag, value):
    with pytest.raises(TrafficProblem, match=f"--{flag}"):
        adjust(*read_traffic("chat"), **{flag: value})


@pytest.mark.parametrize("flag", ["isl", "osl", "concurrency"])
def test_less_than_one_token_or_request_is_refused(flag):
    with pytest.raises(TrafficProblem, match=f"--{flag}"):
        adjust(*read_traffic("chat"), **{flag: 0.5})


def test_a_rate_may_be_below_one_a_second():
    traffic, sources = adjust(*read_traffic("chat"), rate=0.01)
    assert traffic.rate == 0.01 and sources["traffic.rate"] == "flag --rate"


def test_concurrency_and_rate_together_are_refused_with_both_named():
    with pytest.raises(TrafficProblem, match=r"--concurrency 8 and --rate 2 both"):
        adjust(*read_traffic("rag"), concurrency=8, rate=2)


def test_a_length_over_a_profile_scales_its_whole_distribution():
    before, sources = read_traffic("chat")
    after, told = adjust(before, sources, isl=2 * before.isl.mean)
    assert after.isl.p99 == 2 * before.isl.p99 and after.osl == before.osl
    assert statistics.fmean(a for a, _ in after.lengths) == pytest.approx(after.isl.mean, rel=0.01)
    assert [b for _, b in after.lengths] == [b for _, b in before.lengths]
    assert told["traffic.isl"].startswith("flag --isl; spread as in profiles/traffic/chat.yaml")
    assert told["traffic.osl"] == sources["traffic.osl"]
    assert any("scales" in note for note in after.notes)


def test_a_short_output_never_scales_to_nothing():
    after, _ = adjust(*read_traffic("code"), osl=1)
    assert after.osl.p50 >= 1 and min(b for _, b in after.lengths) >= 1


def test_a_concurrency_drops_the_rate_and_the_other_way_round():
    rated, sources = adjust(*read_traffic("chat"), rate=3)
    assert (rated.rate, rated.concurrency) == (3, None)
    assert "traffic.concurrency" not in sources and sources["traffic.rate"] == "flag --rate"
    assert any("concurrency of chat, 32, is left out" in note for note in rated.notes)
    back, sources = adjust(rated, sources, concurrency=5)
    assert (back.rate, back.concurrency) == (None, 5)
    assert "traffic.rate" not in sources


def test_no_flag_changes_nothing():
    traffic, sources = read_traffic("agent")
    assert adjust(traffic, sources) == (traffic, sources)
