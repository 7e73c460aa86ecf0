"""Project 3 against its peers, on the problems, texts and the pretrained model of the test data.

make bench-generation
make bench-generation ARGS='--only attacks --quick'
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt_text_generation.builtin import train_models
from gpt_text_generation.code_generator import STATUSES, Limits, pass_at_k, plant_bug, read_problems, run_tests
from gpt_text_generation.evaluation.diversity_metrics import distinct_n, self_bleu
from gpt_text_generation.evaluation.human_evaluation import cohen_kappa, fleiss_kappa, krippendorff_alpha
from gpt_text_generation.evaluation.perplexity_calculator import token_nats
from gpt_text_generation.text_generator import LanguageModel, Settings, TextGenerator, load_model
from shared.benchmark import Row, Skip, data_folder, interleaved_medians, run_benchmarks
from shared.runtime import set_threads

ROOT = Path(__file__).parents[1]
THREADS = 1  # of both sides: such a small model is no faster with 2


def of_the_tests(name: str) -> ModuleType:
    """Import a file of the project's tests, which are no package."""
    path = ROOT / "tests/gpt_text_generation" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(name: str) -> Any:
    """Return a library that need not be there, or nothing."""
    return importlib.import_module(name) if importlib.util.find_spec(name.partition(".")[0]) else None


# --- Decoding ---------------------------------------------------------------------------------------------------------


def real_model() -> LanguageModel:
    """Return the pretrained model of the test data."""
    set_threads(THREADS)
    return load_model(str(data_folder() / "models/stories260K/hf"), "cpu", "float32")


def mixed_prompts() -> list[str]:
    """Return 16 prompts of 1 to 61 words."""
    words = (data_folder() / "wikitext2/valid.txt").read_text(encoding="utf-8").split()
    return [" ".join(words[i * 100 : i * 100 + 1 + 4 * i]) for i in range(16)]


def perplexity(quick: bool) -> Row:
    """Hold strides 1 to context against one token at a time, each computed from the tokens before it alone."""
    import torch

    model = real_model()
    model.tokenizer.model_max_length = sys.maxsize  # a long text is no mistake here
    context, more = (32, 20) if quick else (model.context, 400)
    text = (data_folder() / "wikitext2/test.txt").read_text(encoding="utf-8")[:10_000]
    ids = model.encode(text)[: context + more]

    @functools.cache
    def nats(place: int, begin: int) -> float:
        with torch.inference_mode():
            logits = model.model(torch.tensor([ids[begin:place]])).logits[0, -1]
        return -float(logits.log_softmax(-1)[ids[place]])

    found = {}
    for stride in (1, 3, 20, context // 2, context - 1, context):
        exact = []
        for place in range(1, len(ids)):
            moves = max(0, -(-(place + 1 - context) // stride))  # until a window holds it
            begin = max(0, min(context + moves * stride, len(ids)) - context)
            exact += [nats(place, begin)] if place > begin else []
        ours = token_nats(model, ids, stride, context=context)
        assert len(ours) == len(exact)
        found[stride] = math.exp(statistics.fmean(ours)), math.exp(statistics.fmean(exact))
    worst = max(abs(one / other - 1) for one, other in found.values())
    return Row(
        f"perplexity of {len(ids)} tokens of wikitext2/test.txt, context {context}, strides "
        f"{', '.join(map(str, found))}",
        "brute force, one token at a time", ", ".join(f"{other:.4f}" for _, other in found.values()),
        f"{', '.join(f'{one:.4f}' for one, _ in found.values())}; at most {worst:.1e} apart", "≤ 1e-4 relative",
        worst <= 1e-4,
    )  # fmt: skip


def batch(quick: bool) -> Row:
    """Decode 16 prompts together and one by one."""
    generator, prompts = TextGenerator(real_model()), mixed_prompts()
    how = Settings("greedy", max_new_tokens=64)
    together = generator.generate(prompts, how)
    alone = [generator.generate([prompt], how)[0] for prompt in prompts]
    same = sum(one.text == other.text for one, other in zip(together, alone, strict=True))
    fast, slow = interleaved_medians(
        lambda: generator.generate(prompts, how),
        lambda: [generator.generate([prompt], how) for prompt in prompts], repeats=2 if quick else 7,
    )  # fmt: skip
    tokens = sum(len(one.token_ids) for one in together)
    return Row("16 prompts of mixed lengths, greedy, float32", "one by one", f"{tokens / slow:,.0f} tokens/s",
               f"{same} of 16 texts the same, {tokens / fast:,.0f} tokens/s (×{slow / fast:.1f})", "16 the same, ×≥ 4",
               same == 16 and slow / fast >= 4)  # fmt: skip


def throughput(quick: bool) -> Row:
    """Decode as transformers does when called directly: greedy and nucleus."""
    import torch

    model, prompts = real_model(), mixed_prompts()
    model.model.generation_config.eos_token_id = None  # so that both make all 64 tokens of each
    generator = TextGenerator(model)
    input_ids, attention_mask = generator._padded([model.encode(prompt) for prompt in prompts])
    ratios = {}
    for strategy in ("greedy", "nucleus"):
        how = Settings(strategy, max_new_tokens=64)  # type: ignore[arg-type]
        config = how.generation_config()
        config.pad_token_id = 0

        def direct(config: Any = config) -> Any:
            with torch.inference_mode():
                return model.model.generate(input_ids, attention_mask=attention_mask, generation_config=config)

        def ours(how: Settings = how) -> Any:
            return generator.generate(prompts, how)

        assert direct().shape[1] - input_ids.shape[1] == 64 == min(len(one.token_ids) for one in ours())
        our_seconds, their_seconds = interleaved_medians(ours, direct, repeats=2 if quick else 61)
        tokens = 64 * len(prompts)
        ratios[strategy] = tokens / our_seconds, tokens / their_seconds
    shown = ", ".join(f"{name} {own:,.0f} (×{own / other:.2f})" for name, (own, other) in ratios.items())
    peer = ", ".join(f"{name} {other:,.0f}" for name, (_, other) in ratios.items())
    return Row("tokens/s of TextGenerator, 16 prompts, tokenizing and log-probabilities included",
               "model.generate called directly on tokens", peer, shown, "×≥ 0.95",
               min(own / other for own, other in ratios.values()) >= 0.95)  # fmt: skip


# --- The sandbox ------------------------------------------------------------------------------------------------------


def plainly(program: str) -> bool:
    """Run a program as most do: in an interpreter that may do all, and right if it exits with 0."""
    command = [sys.executable, "-c", program.encode("utf-8", "replace").decode().replace("\0", "")]
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
        except subprocess.TimeoutExpired:
            return False
    return run.returncode == 0


def humaneval(quick: bool) -> Row:
    """Run HumanEval's own solutions, and the same with a bug in each."""
    problems = read_problems(data_folder() / "code/HumanEval.jsonl.gz")[:: 20 if quick else 1]
    solutions = {
        "as they are": [problem.solution for problem in problems],
        "with a bug": [plant_bug(problem.solution, problem.entry_point) for problem in problems],
    }
    passed, peer = {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, codes in solutions.items():
            verdicts = pool.map(lambda code, its: run_tests(code, its.tests, Limits(seconds=30), setup=its.setup,
                                                            entry_point=its.entry_point), codes, problems)  # fmt: skip
            passed[name] = sum(verdict.passed for verdict in verdicts)
            programs = [f"{code}\n{its.tests}\ncheck({its.entry_point})"
                        for code, its in zip(codes, problems, strict=True)]  # fmt: skip
            peer[name] = sum(pool.map(plainly, programs))

    def show(counts: Mapping[str, int]) -> str:
        return f"{counts['as they are']} pass; {len(problems) - counts['with a bug']} with a bug fail"

    return Row(f"HumanEval's {len(problems)} solutions in the sandbox, as they are and with a planted bug",
               "python -c", show(peer), show(passed), "all pass; all fail",
               passed == {"as they are": len(problems), "with a bug": 0})  # fmt: skip


@contextmanager
def watched(attacks: ModuleType) -> Iterator[tuple[Any, list[str]]]:
    """Put up a host with a secret in the home folder, and note afterwards what is not as it was.

    Yields:
        The host, and the list of what was harmed, which is filled at the end.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # processes that lose their parent become this one's children
    harmed: list[str] = []
    before, former = set(attacks.children()), tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".roadmap-") as home, \
         tempfile.TemporaryDirectory() as temporary, attacks.hosting(Path(home)) as host:  # fmt: skip
        tempfile.tempdir = temporary
        try:
            state = host.state()
            yield host, harmed
            now = host.state()
            harmed += [name for name in state if now[name] != state[name]]
            harmed += ["temporary folder"] if os.listdir(temporary) else []
        finally:
            tempfile.tempdir = former
    harmed += ["processes"] if set(attacks.children()) - before else []


def attacks(quick: bool) -> Row:
    """Attack the sandbox with all that its tests know, and a plain interpreter with what harms nobody."""
    its = of_the_tests("sandbox_attacks")
    if not its.WAYS:
        raise Skip("there is no sandbox on this machine")
    harms, forgeries, endless = (list(some)[:: 8 if quick else 1] for some in (its.HARMS, its.FORGERIES, its.ENDLESS))

    def attack(name: str, code: str, tests: str, seconds: float, held: set[str], way: tuple[str, ...]) -> str:
        verdict = run_tests(code, tests, Limits(seconds=seconds), layers=way)
        return "" if verdict.status in held and verdict.seconds < seconds + 5 else name

    with watched(its) as (host, harmed), ThreadPoolExecutor(2) as pool:
        refused = {*STATUSES} - {"passed"}
        # An attack that breaks off, or has no time, was none: such a verdict counts as a success
        jobs = [(name, host.aimed(name), its.ONCE, 30.0, {"failed", "limit", "crashed"}) for name in harms]
        jobs += [(name, *its.FORGERIES[name], 2.0, refused) for name in forgeries]
        jobs += [(name, its.ENDLESS[name][0], its.SQUARE, 1.0, refused) for name in endless]
        tried = [(*job, way) for way in its.WAYS for job in jobs]
        succeeded = [*filter(None, pool.map(attack, *zip(*tried, strict=True)))]
    with watched(its) as (host, _), ThreadPoolExecutor(2) as pool:
        programs = [f"{host.aimed(name)}\n{its.ONCE}" for name in harms if name in its.HARMLESS]
        theirs = sum(pool.map(plainly, programs))
        forged = ["\n".join(its.FORGERIES[name]) for name in forgeries if name not in its.HUNGRY]
        forged = [program + ("\ncheck(f)" if "def check" in program else "") for program in forged]
        accepted = sum(pool.map(plainly, forged))
    ways = " and without namespaces" if len(its.WAYS) > 1 else ""
    return Row(
        f"{len(jobs)} attacks: {len(harms)} on the machine, {len(forgeries)} forged results, {len(endless)} endless",
        "python -c, what harms nobody",
        f"{theirs} of {len(programs)} on the machine succeed, {accepted} of {len(forged)} forged results",
        f"with all layers{ways} {len(succeeded)} succeed{': ' if succeeded else ''}{', '.join(succeeded)}; "
        f"host {'unharmed' if not harmed else 'harmed: ' + ', '.join(harmed)}",
        "≥ 40 attacks, 0 succeed, host unharmed", not succeeded and not harmed and (len(jobs) >= 40 or quick),
    )  # fmt: skip


# --- Estimators -------------------------------------------------------------------------------------------------------


def beyond(ours: float | None, printed: float, digits: int) -> float:
    """Return how far a figure is from one that is printed with so many digits, more than rounding explains."""
    return math.inf if ours is None else max(0.0, abs(ours - printed) - 0.5 * 10**-digits)


def worst_of_pass_at_k(quick: bool) -> Iterable[float]:
    """Compare with the program of Chen et al. (2021), and the example of Hugging Face's metric code_eval."""
    yield from (abs(pass_at_k(2, 1, 1) - 0.5), abs(pass_at_k(2, 1, 2) - 1.0))
    for n in (1, 2, 10, 100, 200):
        for c in range(n + 1):
            for k in range(1, n + 1, 10 if quick else 1):
                paper = 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
                yield abs(pass_at_k(n, c, k) - paper)


def worst_of_agreement(quick: bool) -> Mapping[str, list[float]]:
    """Compare with printed examples, whose sources the tests name, and with libraries on random ratings."""
    import numpy as np
    from sklearn.metrics import cohen_kappa_score

    printed = of_the_tests("test_human_evaluation")
    library, other = installed("krippendorff"), installed("statsmodels.stats.inter_rater")
    alpha = [
        beyond(krippendorff_alpha(ratings, level, repeats=0).value, value, digits)
        for ratings, level, value, digits in (
            (printed.MEG_OWEN, "nominal", 0.095, 3), (printed.BEN_GERRY, "nominal", 0.692, 3),
            (printed.FOUR_OBSERVERS, "nominal", 0.743, 3), (printed.FOUR_OBSERVERS, "ordinal", 0.815, 3),
            (printed.FOUR_OBSERVERS, "interval", 0.849, 3), (printed.THREE_OBSERVERS, "nominal", 0.691358, 6),
            (printed.THREE_OBSERVERS, "interval", 0.810845, 6),
        )
    ]  # fmt: skip
    fleiss = [beyond(fleiss_kappa(printed.fleiss_table(), repeats=0).value, 0.4302445, 7)]
    clinicians = printed.from_table(printed.CLINICIANS)
    cohen = [beyond(cohen_kappa(*clinicians, repeats=0).value, 0.492, 3),
             beyond(cohen_kappa(*clinicians, weights=printed.SERIOUSNESS, repeats=0).value, 0.348, 3)]  # fmt: skip
    for seed in range(5 if quick else 100):
        rng = random.Random(seed)
        rows = [[rng.choice([1, 2, 3, 5, None]) for _ in range(12)] for _ in range(4)]
        whole = [[value or 4 for value in row] for row in rows]
        for level in ("nominal", "ordinal", "interval"):
            ours = krippendorff_alpha(rows, level, repeats=0).value  # type: ignore[arg-type]
            alpha.append(abs(ours - printed.plain_alpha(rows, level)))
            if library:
                data = [[math.nan if value is None else value for value in row] for row in rows]
                alpha.append(abs(ours - library.alpha(reliability_data=data, level_of_measurement=level)))
        if other:
            table = [[column.count(value) for value in range(1, 6)] for column in zip(*whole, strict=True)]
            fleiss.append(abs(fleiss_kappa(table, repeats=0).value - other.fleiss_kappa(np.array(table))))
        for weights in (None, "linear", "quadratic"):
            theirs = cohen_kappa_score(*whole[:2], weights=weights, labels=range(1, 6))
            ours = cohen_kappa(*whole[:2], weights=weights or "none", categories=range(1, 6), repeats=0).value
            cohen.append(abs(ours - theirs))
    return {"Krippendorff": alpha, "Fleiss": fleiss, "Cohen": cohen}


def worst_of_diversity(quick: bool) -> Mapping[str, list[float]]:
    """Compare self-BLEU with an example of NLTK's manual and with plain counting, distinct-n with scikit-learn."""
    from sklearn.feature_extraction.text import CountVectorizer

    plain, library = of_the_tests("test_diversity_metrics"), installed("nltk.translate.bleu_score")
    candidate = "It is a guide to action which ensures that the military always obeys the commands of the party"
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    bleu = [abs(self_bleu([text.split() for text in (candidate, *references)])[0] - 0.5045666840058485)]
    distinct = []
    for seed in range(5 if quick else 100):
        rng = random.Random(seed)
        texts = [rng.choices("abcdefgh", k=rng.randint(4, 15)) for _ in range(6)]
        for row, ours in enumerate(self_bleu(texts)):
            others = texts[:row] + texts[row + 1 :]
            bleu.append(abs(ours - plain.plain_bleu(texts[row], others)))
            if library:
                smooth = library.SmoothingFunction(epsilon=0.1).method1
                bleu.append(abs(ours - library.sentence_bleu(others, texts[row], smoothing_function=smooth)))
        for n in (1, 2, 3):
            counter = CountVectorizer(ngram_range=(n, n), token_pattern=r"\S+", lowercase=False)
            counts = counter.fit_transform(map(" ".join, texts))
            distinct.append(abs((distinct_n(texts, n) or 0) - counts.shape[1] / counts.sum()))
    return {"self-BLEU": bleu, "distinct-n": distinct}


def estimators(quick: bool) -> Row:
    """Hold estimators against published examples and other libraries."""
    found = {"pass@k": [*worst_of_pass_at_k(quick)], **worst_of_agreement(quick), **worst_of_diversity(quick)}
    libraries = ["scikit-learn", *(name for name in ("krippendorff", "statsmodels", "nltk") if installed(name))]
    return Row("pass@k, Krippendorff, Fleiss, Cohen, self-BLEU, distinct-n",
               f"published examples; plain counting; {', '.join(libraries)}", "the same",
               "at most " + ", ".join(f"{max(its):.0e} ({name}, {len(its):,})" for name, its in found.items()),
               "≤ 1e-6", max(map(max, found.values())) <= 1e-6)  # fmt: skip


# --- The embedded models ----------------------------------------------------------------------------------------------


def stories(quick: bool) -> Row:
    """Measure the embedded story model."""
    its = train_models.held_out_figures("stories")
    share = its["perplexity"] / its["five_gram_perplexity"]
    return Row("builtin:stories: name and place kept to the end; held-out perplexity", "5-gram model",
               f"perplexity {its['five_gram_perplexity']:.2f}",
               f"{its['keeps_name_and_place']:.3f}; {its['perplexity']:.2f} ({share:.0%})", "≥ .95; ≤ 50 %",
               its["keeps_name_and_place"] >= 0.95 and share <= 0.5)  # fmt: skip


def python(quick: bool) -> Row:
    """Measure the embedded code model."""
    its = train_models.held_out_figures("python")
    return Row("builtin:python: pass@1, greedy, 300 tasks whose composition was never trained", "–", "–",
               f"{its['pass_at_1']:.3f}", "≥ .80; stretch .95", its["pass_at_1"] >= 0.8)  # fmt: skip


DEMO = (
    ("gpt_text_generation.text_generator", "compare", ("--count", "2", "--samples", "1")),
    ("gpt_text_generation.code_generator", "evaluate", ("--limit", "5")),
)


def demo(quick: bool) -> Row:
    """Run what ``make demo`` does: strategies side by side, and the code model's held-out tasks."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for module, command, fewer in DEMO:
            flags = fewer if quick else ()
            subprocess.run([sys.executable, "-m", module, command, *flags], cwd=folder, check=True, env=environment,
                           stdout=subprocess.DEVNULL)  # fmt: skip
        seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        for path in Path(folder).glob("outputs/*/*/results.json"):
            metrics |= json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return Row("make demo's share", "–", "–", f"{seconds:.0f} s, pass@1 {metrics['pass_at_1']:.3f}", "≤ 120 s",
               seconds <= 120)  # fmt: skip


ROWS: dict[str, Callable[[bool], Row]] = {
    "perplexity": perplexity, "batch": batch, "throughput": throughput, "humaneval": humaneval,
    "estimators": estimators, "attacks": attacks, "python": python, "stories": stories, "demo": demo,
}  # fmt: skip

if __name__ == "__main__":
    run_benchmarks("generation", ROWS)
