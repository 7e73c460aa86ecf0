"""Fit ``evidence.json``: what makes a sentence the quote for a question, and how likely it then holds the answer.

    python -m qa_system.builtin.fit_evidence fit --data xquad_en_part1.json

Needs questions in SQuAD's format with answers in several articles. The choice is a linear model of the features, fitted
by listwise softmax on questions searched among all paragraphs; the confidence is logistic regression on the chosen
quote's signs, fitted on these questions and on three kinds that have no answer: the same ones searched among the other
articles, or among all paragraphs but their own, which are near misses, and the same ones turned around by a "not".
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qa_system.evaluation.answer_quality import read_squad
from qa_system.generation.citation_handler import ASKED, FEATURES, NOT, SIGNS, WEIGHTS, Evidence, candidates, signs
from qa_system.retrieval.dense_retrieval import Library
from qa_system.retrieval.sparse_retrieval import Hit
from shared.config import run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import write_atomic

MODULE = "qa_system.builtin.fit_evidence"
FOLDS = 6  # of articles
UNANSWERABLE = ("elsewhere", "near", "negated")
VERB = re.compile(
    r"\b(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might|must)\b", re.I
)  # after which "not" stands
logger = logging.getLogger(MODULE)


@dataclass
class FitConfig:
    """Fit the weights of the builtin answerer, after measuring them on articles they were not fitted on."""

    data: str = "xquad_en_part1.json"
    """Questions in SQuAD's format."""
    wanted: float = 0.95
    """Share of the answerable questions that the threshold of refusal lets pass, in (0, 1)."""
    output: str = str(WEIGHTS)
    """Where the weights go."""


@dataclass
class Search:
    """A question with what was found for it.

    Attributes:
        question: Its text.
        hits: Best first.
        found: Candidates of the hits.
    """

    question: str
    hits: Sequence[Hit]
    found: list[Evidence]

    @classmethod
    def of(cls, library: Library, question: str, names: list[str] | None = None) -> Search:
        """Search among the documents of these names, or among all."""
        hits = library.search(question, filter=None if names is None else {"document_name": names})
        return cls(question, hits, candidates(question, hits, library.embedding))

    def quotes(self) -> list[str]:
        """Return the candidates' texts."""
        return [self.hits[one.hit].chunk.text[one.start : one.end] for one in self.found]

    def signs(self, weights: NDArray[np.float64]) -> tuple[float, ...]:
        """Return those of the candidate that the weights choose."""
        return signs(self.question, self.found[best(matrix(self.found), weights)], self.hits)


@dataclass
class Example:
    """A question with its candidates.

    Attributes:
        article: Its article's number.
        features: Of the candidates among all articles, (N, F).
        right: Whether each holds the answer, (N,).
        answerable: The question among all articles.
        unanswerable: Where it has no answer, by kind; one that can't be negated lacks that kind.
    """

    article: int
    features: NDArray[np.float64]
    right: NDArray[np.bool_]
    answerable: Search
    unanswerable: dict[str, Search]


def negate(question: str) -> str | None:
    """Put a "not" after a question's first auxiliary verb: not how one speaks, but nearly the same to the embedder.

    Returns:
        None where there is no such verb, it is negated already, or it asks for yes or no, so that the answer stays.
    """
    verb = VERB.search(question)
    if not verb or NOT.search(question) or not ASKED.search(question):
        return None
    return f"{question[: verb.end()]} not{question[verb.end() :]}"


def examples(path: Path) -> list[Example]:
    """Ask all questions of a file among its paragraphs.

    Raises:
        InputError: It has one article, so that no question is unanswerable elsewhere.
    """
    documents, questions = read_squad(path)
    library = Library()
    library.add_documents([(document, None) for document in documents])
    articles = {document.name: document.name.rpartition(", ")[0] for document in documents}
    names = list(dict.fromkeys(articles.values()))
    if len(names) < 2:
        raise InputError(f"data must hold at least 2 articles. {path} holds {len(names)}.")
    questions = [question for question in questions if question.answerable]
    made = []
    with progress_bar() as bar:
        for question in bar.track(questions, task_id=bar.add_task("ask", figures="")):
            own = articles[question.document]
            here = Search.of(library, question.question)
            without = {
                "elsewhere": Search.of(
                    library, question.question, [n for n, other in articles.items() if other != own]
                ),
                "near": Search.of(library, question.question, [n for n in articles if n != question.document]),
            }
            if negated := negate(question.question):
                without["negated"] = Search.of(library, negated)
            right = [
                here.hits[evidence.hit].chunk.document_name == question.document
                and any(answer in quote for answer in question.answers)
                for evidence, quote in zip(here.found, here.quotes(), strict=True)
            ]
            made.append(Example(names.index(own), matrix(here.found), np.array(right), here, without))
    return made


def matrix(found: list[Evidence]) -> NDArray[np.float64]:
    """Stack features, (N, F)."""
    return np.array([evidence.features for evidence in found]).reshape(-1, len(FEATURES))


def fit_choice(some: list[Example]) -> NDArray[np.float64]:
    """Minimize −log of the probability, softmax over a question's candidates, that the right ones get together."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    some = [example for example in some if example.right.any()]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = 1e-3 * float(weights @ weights), 2e-3 * weights
        for example in some:
            scores = example.features @ weights
            all_of, right_of = logsumexp(scores), logsumexp(scores[example.right])
            value += (all_of - right_of) / len(some)
            share = np.exp(scores - all_of)
            share[example.right] -= np.exp(scores[example.right] - right_of)
            gradient = gradient + share @ example.features / len(some)
        return value, gradient

    return np.asarray(minimize(loss, np.zeros(len(FEATURES)), jac=True, method="L-BFGS-B").x)


def best(features: NDArray[np.float64], weights: NDArray[np.float64]) -> int:
    """Return the row of the best candidate."""
    return int((features @ weights).argmax())


def fit(config: FitConfig) -> None:
    """Fit and save; see :class:`FitConfig`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    made = examples(Path(config.data))
    right = []
    for fold in range(FOLDS):
        weights = fit_choice([example for example in made if example.article % FOLDS != fold])
        for example in (example for example in made if example.article % FOLDS == fold):
            right.append(example.right[best(example.features, weights)])
    weights = fit_choice(made)
    known = [example.answerable.signs(weights) for example in made]
    unknown = [(kind, search.signs(weights)) for example in made for kind, search in example.unanswerable.items()]
    rows, labels = np.array([*known, *(row for _, row in unknown)]), np.repeat([1, 0], [len(known), len(unknown)])
    # Balanced, so that both sorts of questions weigh the same, though there are three times as many without an answer
    model = LogisticRegression(C=100, class_weight="balanced", max_iter=1000).fit(rows, labels)
    confidence = model.predict_proba(rows)[:, 1]
    kinds, sure = np.array([kind for kind, _ in unknown]), confidence[: len(known)]
    threshold = float(np.quantile(sure, 1 - config.wanted))
    unsure = {kind: confidence[len(known) :][kinds == kind] for kind in UNANSWERABLE}
    content = {
        "features": FEATURES,
        "choice": weights.round(3).tolist(),
        "confidence": {
            "signs": SIGNS, "weights": model.coef_[0].round(3).tolist(), "bias": round(float(model.intercept_[0]), 3),
            "threshold": round(threshold, 3),
        },
        "fitted_on": f"{Path(config.data).name}, {len(made)} questions",
        "held_out_articles": {"answer in the quote": round(float(np.mean(right)), 4)},
        "same_questions": {
            kind: {
                "questions": len(its),
                "area under ROC": round(float(roc_auc_score(
                    np.repeat([1, 0], [len(sure), len(its)]), np.concatenate([sure, its])
                )), 4),
                "refused": round(float((its < threshold).mean()), 4),
            }
            for kind, its in unsure.items() if len(its)
        },
    }  # fmt: skip
    write_atomic(Path(config.output), json.dumps(content, indent=2) + "\n")
    logger.info("%s", json.dumps(content))


if __name__ == "__main__":
    run_commands({"fit": fit}, module=MODULE, extra="qa")
