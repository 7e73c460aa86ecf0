"""Fit ``evidence.json``: what makes a sentence the quote for a question, and how likely it then holds the answer.

    python -m qa_system.builtin.fit_evidence fit --data xquad_en_part1.json

Needs questions in SQuAD's format with answers in several articles. The choice is a linear model of the features, fitted
by listwise softmax on questions searched among all paragraphs; the confidence is logistic regression on its two
cosines, fitted on these questions and on the same ones searched among the other articles, which don't hold the answers.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qa_system.evaluation.answer_quality import read_squad
from qa_system.generation.citation_handler import FEATURES, WEIGHTS, Evidence, candidates
from qa_system.retrieval.dense_retrieval import Library
from shared.config import run_commands
from shared.logs import progress_bar
from shared.results import write_atomic

MODULE = "qa_system.builtin.fit_evidence"
FOLDS = 6  # of articles
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
class Example:
    """A question with its candidates.

    Attributes:
        article: Its article's number.
        features: Of the candidates among all articles, (N, F).
        right: Whether each holds the answer, (N,).
        elsewhere: Features of the candidates among the other articles, (M, F).
    """

    article: int
    features: NDArray[np.float64]
    right: NDArray[np.bool_]
    elsewhere: NDArray[np.float64]


def examples(path: Path) -> list[Example]:
    """Ask all questions of a file among its paragraphs."""
    documents, questions = read_squad(path)
    library = Library()
    library.add_documents([(document, None) for document in documents])
    articles = {document.name: document.name.rpartition(", ")[0] for document in documents}
    names = list(dict.fromkeys(articles.values()))
    questions = [question for question in questions if question.answerable]
    made = []
    with progress_bar() as bar:
        for question in bar.track(questions, task_id=bar.add_task("ask", figures="")):
            own = articles[question.document]
            others = {"document_name": [name for name, article in articles.items() if article != own]}
            hits = library.search(question.question)
            found = candidates(question.question, hits, library.embedding)
            quotes = [hits[evidence.hit].chunk.text[evidence.start : evidence.end] for evidence in found]
            right = [
                hits[evidence.hit].chunk.document_name == question.document
                and any(a in quote for a in question.answers)
                for evidence, quote in zip(found, quotes, strict=True)
            ]
            hits = library.search(question.question, filter=others)
            elsewhere = candidates(question.question, hits, library.embedding)
            made.append(Example(names.index(own), matrix(found), np.array(right), matrix(elsewhere)))
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
    known = np.array([example.features[best(example.features, weights), :2] for example in made])
    unknown = np.array([example.elsewhere[best(example.elsewhere, weights), :2] for example in made])
    rows, labels = np.concatenate([known, unknown]), np.repeat([1, 0], [len(known), len(unknown)])
    model = LogisticRegression(C=100).fit(rows, labels)
    confidence = model.predict_proba(rows)[:, 1]
    threshold = float(np.quantile(confidence[: len(known)], 1 - config.wanted))
    content = {
        "features": FEATURES,
        "choice": weights.round(3).tolist(),
        "confidence": {
            "weights": model.coef_[0].round(3).tolist(), "bias": round(float(model.intercept_[0]), 3),
            "threshold": round(threshold, 3),
        },
        "fitted_on": f"{Path(config.data).name}, {len(made)} questions",
        "held_out_articles": {"answer in the quote": round(float(np.mean(right)), 4)},
        "same_questions": {
            "area under ROC, answer here or elsewhere": round(float(roc_auc_score(labels, confidence)), 4),
            "refused of those elsewhere": round(float((confidence[len(known) :] < threshold).mean()), 4),
        },
    }  # fmt: skip
    write_atomic(Path(config.output), json.dumps(content, indent=2) + "\n")
    logger.info("%s", json.dumps(content))


if __name__ == "__main__":
    run_commands({"fit": fit}, module=MODULE, extra="qa")
