"""Figures equal trec_eval's, the test and the interval SciPy's, and Holm's correction its definition."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from qa_system.document_processor.pdf_reader import Document
from qa_system.evaluation import retrieval_metrics as module
from qa_system.evaluation.retrieval_metrics import (
    DEFAULT_METRICS,
    METRICS,
    MODULE,
    bootstrap_interval,
    evaluate,
    holm,
    load_collection,
    ndcg,
    per_query,
    plot_report,
    randomization_test,
    ranked,
    read_beir,
    report,
)
from shared.config import run_commands
from shared.errors import InputError

# Quarters are exact in 32 bits, so ties are the same ones for trec_eval
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "é4"]),
    st.dictionaries(
        st.sampled_from(["d1", "d2", "d3", "d10", "D2", "é", "文"]), st.integers(-8, 8).map(lambda n: n / 4)
    ),
    min_size=1,
)
judgments = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "é4"]),
    st.dictionaries(st.sampled_from(["d1", "d2", "d3", "d10", "D2", "é", "文"]), st.integers(-1, 4), min_size=1),
    min_size=1,
)
THEIR_NAMES = {"nDCG": "ndcg_cut", "recall": "recall", "precision": "P", "MAP": "map_cut"}


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"evaluate": evaluate}, module=MODULE, argv=arguments)
    return exit_.value.code


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", THEIR_NAMES)
@given(run=runs, qrels=judgments, k=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_trec_eval(name: str, run: dict, qrels: dict, k: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {f"{THEIR_NAMES[name]}.{k}"}).evaluate(run)
    ours = per_query(run, qrels, f"{name}@{k}")
    assert ours.keys() == qrels.keys()
    for query, value in ours.items():  # theirs leaves out queries that the run lacks
        expected = theirs[query][f"{THEIR_NAMES[name]}_{k}"] if query in theirs else 0.0
        assert value == pytest.approx(expected, abs=1e-12)


@given(run=runs, qrels=judgments, k=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_reciprocal_ranks_are_those_of_trec_eval_on_as_many_documents(run: dict, qrels: dict, k: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    cut = {query: {id: scores[id] for id in ranked(scores)[:k]} for query, scores in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
    for query, value in per_query(run, qrels, f"MRR@{k}").items():
        assert value == pytest.approx(theirs.get(query, {}).get("recip_rank", 0.0))


@given(run=runs, qrels=judgments)
@settings(max_examples=30, deadline=None)
def test_an_exponential_gain_is_a_linear_one_of_other_grades(run: dict, qrels: dict) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    raised = {q: {id: 2 ** max(grade, 0) - 1 for id, grade in judged.items()} for q, judged in qrels.items()}
    theirs = pytrec_eval.RelevanceEvaluator(raised, {"ndcg_cut.5"}).evaluate(run)
    for query, value in per_query(run, qrels, "nDCG-exp@5").items():
        assert value == pytest.approx(theirs.get(query, {}).get("ndcg_cut_5", 0.0))


@given(run=runs, qrels=judgments)
@settings(max_examples=20, deadline=None)
def test_means_are_those_of_ir_measures_which_counts_queries_without_hits(run: dict, qrels: dict) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    names = {"nDCG@10": "nDCG@10", "recall@10": "R@10", "precision@10": "P@10", "MAP@10": "AP@10"}
    theirs = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in names.values()], qrels, run)
    ours = report({"one": run}, qrels, list(names), repeats=1)
    assert {f.metric: f.value for f in ours.figures} == pytest.approx(
        {name: theirs[ir_measures.parse_measure(other)] for name, other in names.items()}
    )


def test_figures_of_a_worked_example() -> None:
    run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"a": 1, "c": 2, "z": 1}, "nothing found": {"a": 1}}
    expected = {
        "recall@3": 2 / 3,
        "precision@5": 2 / 5,
        "MRR@1": 1.0,
        "MAP@3": (1 / 1 + 2 / 3) / 3,
        "nDCG@3": (1 + 2 / 2) / (2 + 1 / math.log2(3) + 1 / 2),
        "nDCG-exp@3": (1 + 3 / 2) / (3 + 1 / math.log2(3) + 1 / 2),
    }
    for metric, value in expected.items():
        assert per_query(run, qrels, metric) == {"q": pytest.approx(value), "nothing found": 0.0}


@given(run=runs, qrels=judgments, metric=st.sampled_from(list(METRICS)), k=st.integers(1, 9))
@settings(deadline=None)
def test_every_figure_lies_between_nothing_and_the_perfect_ranking(run: dict, qrels: dict, metric: str, k: int) -> None:
    perfect = per_query(qrels, qrels, f"{metric}@{k}")
    for query, value in per_query(run, qrels, f"{metric}@{k}").items():
        assert 0 <= value <= perfect[query] + 1e-12 <= 1 + 2e-12


def test_ties_are_broken_by_id_and_order_of_insertion_is_nothing() -> None:
    ids = ["d1", "d10", "d2", "文"]
    for order in itertools.permutations(ids):
        assert ranked(dict.fromkeys(order, 0.5)) == ["文", "d2", "d10", "d1"]


def test_a_relevant_document_at_a_better_rank_is_never_worse() -> None:
    judged = {"a": 2, "b": 1}
    values = [ndcg([*["x"] * rank, "a", "b"], judged, 10) for rank in range(8)]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 8


@pytest.mark.parametrize("seed", range(3))
def test_the_randomization_test_agrees_with_scipy(seed: int) -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(seed)
    one = rng.random(9)
    other = np.where(rng.random(9) < 0.3, one, one + rng.normal(0.08, 0.2, 9))
    exact = permutation_test(
        (one, other), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    ours = randomization_test(one, other, repeats=40_000)
    assert ours == pytest.approx(exact, abs=0.01)
    assert ours == randomization_test(other, one, repeats=40_000)


def test_p_is_never_zero_and_one_where_nothing_differs() -> None:
    assert randomization_test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], repeats=99) == 1.0
    assert randomization_test([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], repeats=99) == 1.0  # the differences sum to 5.6e-17
    # No choice of signs gives less than what was measured, 0.2, but by rounding a quarter of them seem to
    assert randomization_test([0.1, 0.0, 0.4, 0.8], [0.3, 0.9, 0.2, 0.1], repeats=999) == 1.0
    assert randomization_test(np.ones(60), np.zeros(60), repeats=999) == 1 / 1000


def test_a_true_null_is_rejected_as_seldom_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    p_values = [randomization_test(*rng.random((2, 30)), repeats=399, seed=i) for i in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.08)


@given(st.lists(st.floats(1e-5, 1), min_size=1, max_size=6))
@settings(deadline=None)
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    # A hypothesis is rejected when every set of hypotheses that has it is, by Bonferroni's test of the set.
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(range(len(p_values)), size)]
    expected = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
                for i in range(len(p_values))]  # fmt: skip
    assert holm(p_values) == pytest.approx(expected)


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_interval_is_that_of_scipy_and_holds_the_mean() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).random(80)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.004)
    assert low < values.mean() < high
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


def test_drawing_in_portions_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 50))
    whole = bootstrap_interval(one), randomization_test(one, other)
    monkeypatch.setattr(module, "_portions", lambda repeats, size: iter([7] * (repeats // 7) + [repeats % 7]))
    assert (bootstrap_interval(one), randomization_test(one, other)) == whole


@pytest.fixture
def three() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    qrels = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 2} for i in range(40)}
    made: dict[str, dict] = {"bad": {}, "same as bad": {}, "good": {}}
    for i in range(40):
        noise = dict(zip((f"d{j}" for j in range(60)), rng.random(60).tolist(), strict=True))
        made["bad"][f"q{i}"] = made["same as bad"][f"q{i}"] = noise
        made["good"][f"q{i}"] = {**noise, f"d{i + 1}": 0.97}
    return made, qrels


def test_the_report_compares_with_the_first_and_says_what_is_significant(three: tuple[dict, dict]) -> None:
    made, qrels = three
    seconds = {"bad": [0.001] * 99 + [0.2], "good": [0.003] * 40}
    table = report(made, qrels, ["nDCG@10", "MRR@5"], seconds)
    by_name = {(f.system, f.metric): f for f in table.figures}
    assert len(by_name) == 6
    assert by_name["bad", "nDCG@10"].p is None
    assert by_name["same as bad", "nDCG@10"].p == 1.0
    assert by_name["good", "nDCG@10"].p == 2 / 10_001  # the smallest there is, times two comparisons
    assert all(f.low < f.value < f.high for f in table.figures)
    assert table.latencies == {"bad": pytest.approx((1.0, 1.0)), "good": pytest.approx((3.0, 3.0))}
    [line] = [line for line in str(table).splitlines() if line.startswith("nDCG@10") and "good" in line]
    assert line.split()[2] == f"{by_name['good', 'nDCG@10'].value:.4f}"
    assert line.endswith("0.0002 *")
    assert "ms a query    bad          p50 1.0, p95 1.0" in str(table)
    named = table.metrics()
    assert named["good MRR@5"] == by_name["good", "MRR@5"].value
    assert "bad MRR@5 p" not in named
    assert named["good ms p95"] == pytest.approx(3.0)
    json.dumps(named, allow_nan=False)


def test_the_report_is_the_same_every_time(three: tuple[dict, dict]) -> None:
    made, qrels = three
    assert report(made, qrels, repeats=500) == report(made, qrels, repeats=500)


def test_the_plot_shows_every_system(three: tuple[dict, dict], tmp_path: Path) -> None:
    from PIL import Image

    made, qrels = three
    sizes = []
    for systems in (["bad"], list(made)):
        table = report({name: made[name] for name in systems}, qrels, repeats=50)
        plot_report(table, tmp_path / "plot.png", "中文 and $cost$")
        with Image.open(tmp_path / "plot.png") as image:
            sizes.append(image.size)
            assert len(image.convert("RGB").getcolors(10**6)) > 50
    assert sizes[0][0] < sizes[1][0]


@pytest.mark.parametrize("metric", ["nDCG", "nDCG@0", "nDCG@-1", "ndcg@10", "@10", "nDCG@10@3", "nDCG@ten", ""])
def test_an_unknown_metric_is_named(metric: str) -> None:
    with pytest.raises(InputError, match="A metric must be one of nDCG, nDCG-exp, recall"):
        per_query({}, {}, metric)


def test_a_report_of_nothing_and_scores_that_are_no_numbers_are_refused() -> None:
    for runs_, qrels in (({}, {"q": {"d": 1}}), ({"one": {}}, {})):
        with pytest.raises(InputError, match="a run and a judged query"):
            report(runs_, qrels)
    with pytest.raises(InputError, match="finite"):
        report({"one": {"q": {"d": math.nan}}}, {"q": {"d": 1}})


# --- Formats ----------------------------------------------------------------------------------------------------------

CORPUS = {
    "d1": ("Cats", "A cat sleeps for sixteen hours a day."),
    "d2": ("", "Dogs were the first animals that people kept."),
    "d3": ("Ferries", "The ferry to Skerra takes fifty-five minutes."),
    "文4": ("长城", "长城全长两万一千公里。"),
    "empty": ("", ""),
}
QUERIES = {"q1": "how long do cats sleep", "q2": "ferry duration", "q3": "长城有多长", "q4": "of another split"}


@pytest.fixture
def beir(tmp_path: Path) -> Callable[..., Path]:
    def make(qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3\t1\nq3\t文4\t1\n") -> Path:
        folder = tmp_path / "beir"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        corpus = [{"_id": id, "title": title, "text": text} for id, (title, text) in CORPUS.items()]
        queries = [{"_id": id, "text": text, "metadata": {}} for id, text in QUERIES.items()]
        for name, rows in (("corpus", corpus), ("queries", queries)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
        return folder

    return make


def test_beir_folders_are_read(beir: Callable[..., Path]) -> None:
    collection = read_beir(beir())
    assert [document.name for document in collection.documents] == ["d1", "d2", "d3", "文4"]
    assert [document.text for document in collection.documents][:2] == [
        "Cats\n\nA cat sleeps for sixteen hours a day.", CORPUS["d2"][1],
    ]  # fmt: skip
    assert collection.queries == {id: QUERIES[id] for id in ("q1", "q2", "q3")}
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}, "q3": {"文4": 1}}
    windows = read_beir(beir("q1\td1\t2\r\nq1\td2\t0\r\nq2\td3\t1\r\nq3\t文4\t1\r\n\r\n"))  # and without a head
    assert (windows.queries, windows.qrels) == (collection.queries, collection.qrels)


def test_a_document_that_is_judged_and_missing_counts_as_not_found(
    beir: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    collection = read_beir(beir("q1\td1\t1\nq1\tgone\t1\n"))
    assert "judges 1 documents that are not in the corpus" in caplog.text
    assert per_query({"q1": {"d1": 1.0}}, collection.qrels, "recall@10") == {"q1": 0.5}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "d9"}', r"Line 6 of .*corpus.jsonl must be a JSON object with _id, text"),
        ("queries.jsonl", "not JSON", r"Line 5 of .*queries.jsonl must be a JSON object"),
        ("queries.jsonl", "[1]", r"Line 5 of .*queries.jsonl must be a JSON object"),
        ("qrels/test.tsv", "q1 d1 1", r"Line 6 of .*test.tsv must be"),
        ("qrels/test.tsv", "nobody\td1\t1", r"Line 6 of .*test.tsv must be a known query"),
        ("qrels/test.tsv", "q1\td1\tyes", r"Line 6 of .*test.tsv must be"),
    ],
)
def test_a_line_that_is_wrong_is_named(beir: Callable[..., Path], file: str, line: str, message: str) -> None:
    folder = beir()
    with (folder / file).open("a", encoding="utf-8") as target:
        target.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read_beir(folder)


def test_a_split_that_is_not_there_and_bytes_that_are_no_text_are_errors(beir: Callable[..., Path]) -> None:
    folder = beir()
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv"):
        read_beir(folder, "dev")
    (folder / "corpus.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_beir(folder)


def test_of_questions_the_page_with_the_answer_is_to_be_found(tmp_path: Path) -> None:
    documents = tmp_path / "mine" / "documents"
    documents.mkdir(parents=True)
    (documents / "cats.txt").write_text("A cat sleeps for sixteen hours a day.", encoding="utf-8")
    rows = [
        {"id": "1", "question": "How long?", "answers": ["sixteen hours"], "document": "cats.txt", "page": 1},
        {"id": "2", "question": "Why?", "answers": [], "answerable": False},
    ]
    (documents.parent / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    collection = load_collection(str(documents.parent))
    assert collection.queries == {"1": "How long?"}
    assert collection.qrels == {"1": {"cats.txt#1": 1}}
    assert collection.pages


# --- The command ------------------------------------------------------------------------------------------------------


class Letters(Embeddings):
    """Counts of letters, which is enough to tell these texts apart."""

    name = "letters"

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def embed_query(self, text: str) -> list[float]:
        return [1e-3 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz长城"]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def test_the_command_measures_every_mode_and_leaves_table_plot_and_queries(
    beir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qa_system.retrieval.dense_retrieval.SentenceEmbeddings", Letters)
    assert cli("evaluate", "--data", str(beir()), "--metrics", "nDCG@10,recall@2", "--run", "one") == 0
    folder = Path("outputs/qa_system/one")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    metrics = results["metrics"]
    assert results["model"] == "letters"
    assert (metrics["queries"], metrics["documents"], metrics["chunks"]) == (3, 4, 4)
    for mode in ("sparse", "dense", "hybrid-rrf", "hybrid-min-max", "hybrid"):
        assert 0 <= metrics[f"{mode} nDCG@10 low"] <= metrics[f"{mode} nDCG@10"] <= metrics[f"{mode} nDCG@10 high"] <= 1
        assert metrics[f"{mode} ms p50"] > 0
        assert (f"{mode} recall@2 p" in metrics) == (mode != "sparse")
    assert metrics["sparse nDCG@10"] == 1.0
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["q1", "q2", "q3"]
    assert rows[2]["found"]["sparse"] == ["文4"]
    assert np.mean([row["nDCG@10"]["dense"] for row in rows]) == pytest.approx(metrics["dense nDCG@10"])
    assert (folder / "retrieval.png").stat().st_size > 10_000
    assert "nDCG@10       hybrid-min-max" in capsys.readouterr().out


def test_a_long_document_counts_as_its_best_chunk() -> None:
    from qa_system.document_processor.text_splitter import Chunk
    from qa_system.retrieval.sparse_retrieval import Hit

    class Fixed:
        def search(self, question: str, k: int) -> list[Hit]:
            chunks = [("a", 0, 0.9, (1,)), ("b", 0, 0.8, (2, 3)), ("a", 50, 0.1, (1, 2))][:k]
            return [Hit(Chunk(name, name, at, at + 4, "text", pages), score, {}) for name, at, score, pages in chunks]

    documents: list[Document] = []
    by_name = module.Collection(documents, {"q": "what?"}, {"q": {"a": 1}})
    found, seconds = module.search_all(by_name, {"fixed": Fixed()})
    assert found == {"fixed": {"q": {"a": 0.9, "b": 0.8}}}
    assert len(seconds["fixed"]) == 1
    by_page = module.Collection(documents, {"q": "what?"}, {"q": {"a#1": 1}}, pages=True)
    assert module.search_all(by_page, {"fixed": Fixed()})[0]["fixed"]["q"] == {
        "a#1": 0.9, "b#2": 0.8, "b#3": 0.8, "a#2": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "dense,best"], "modes must be some of sparse, dense, hybrid"),
        (["--metrics", "F1@10"], "A metric must be one of"),
        (["--max_tokens", "3"], "max_tokens must be in"),
        (["--data", "builtin:nothing"], "There is no 'builtin:nothing'"),
        (["--data", "nobody/nothing"], "must be JSON in SQuAD's format"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("evaluate", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_default_metrics_are_known() -> None:
    assert per_query({}, {"q": {"d": 1}}, DEFAULT_METRICS[0]) == {"q": 0.0}
    assert [metric.split("@")[0] for metric in DEFAULT_METRICS] == ["nDCG", "recall", "precision", "MRR", "MAP"]
