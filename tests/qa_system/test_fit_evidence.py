"""What is fitted can be read by the answerer, and keeps what it promises on the questions that it is fitted on."""

import json
from pathlib import Path

import pytest

from qa_system.builtin.fit_evidence import MODULE, UNANSWERABLE, fit, negate
from qa_system.generation.citation_handler import FEATURES, SIGNS
from shared.config import run_commands

ARTICLES = {
    "Norwick": [
        ("The pier of Norwick is 80 metres long. It was lengthened in 1978.",
         [("How long is the pier of Norwick?", "80 metres"), ("When was the pier lengthened?", "1978")]),
        ("The lighthouse of Norwick was built by Alan Stevenson. It has a green light.",
         [("Who built the lighthouse?", "Alan Stevenson"), ("What light does the lighthouse have?", "green")]),
    ],
    "Dogs": [
        ("Dogs travel free on every ferry. A dog is kept on a lead of two metres.",
         [("How long is the lead of a dog?", "two metres"), ("What do dogs pay on a ferry?", "free")]),
        ("Guide dogs may enter the restaurant. The pet lounge is on the lower deck.",
         [("Which dogs may enter the restaurant?", "Guide dogs"), ("Where is the pet lounge?", "lower deck")]),
    ],
}  # fmt: skip


def data(folder: Path, *titles: str) -> str:
    rows = []
    for title in titles:
        paragraphs = [
            {"context": text, "qas": [{"id": q, "question": q, "answers": [{"text": a}]} for q, a in asked]}
            for text, asked in ARTICLES[title]
        ]
        rows.append({"title": title, "paragraphs": paragraphs})
    path = folder / "mine.json"
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")
    return str(path)


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"fit": fit}, module=MODULE, argv=["fit", *arguments])
    return exit_.value.code


@pytest.mark.parametrize(
    ("question", "negated"),
    [
        ("When was the pier built?", "When was not the pier built?"),
        ("In what year did it close?", "In what year did not it close?"),
        ("Who built the pier?", None),
        ("What can't dogs do?", None),
        ("Can dogs enter?", None),
    ],
)
def test_questions_are_negated_where_that_changes_the_answer(question: str, negated: str | None) -> None:
    assert negate(question) == negated


def test_weights_are_fitted_for_every_feature_and_sign_and_the_threshold_passes_what_was_wanted(tmp_path: Path) -> None:
    output = tmp_path / "evidence.json"
    assert cli("--data", data(tmp_path, *ARTICLES), "--output", str(output), "--wanted", "0.75") == 0
    learned = json.loads(output.read_text(encoding="utf-8"))
    assert len(learned["choice"]) == len(FEATURES)
    confidence = learned["confidence"]
    assert len(confidence["weights"]) == len(SIGNS)
    assert 0 < confidence["threshold"] < 1
    figures = learned["same_questions"]
    assert [figures[kind]["questions"] for kind in UNANSWERABLE] == [8, 8, 7]  # "Who built …" has no auxiliary verb
    assert figures["elsewhere"]["area under ROC"] > 0.9
    negated = dict(zip(SIGNS, confidence["weights"], strict=True))["contrary"]
    assert negated == min(confidence["weights"])
    assert negated < 0


def test_one_article_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--data", data(tmp_path, "Dogs"), "--output", str(tmp_path / "evidence.json")) == 2
    assert "data must hold at least 2 articles" in capsys.readouterr().err
