"""Every project folder holds exactly its tree, and code depends one way: project → shared → libraries."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The roadmap's trees. `{a,b}` are two files; the number orders the notebooks.
TREES = {
    "transformer_from_scratch": """
        attention.py positional_encoding.py transformer_block.py train_simple_lm.py requirements.txt""",
    "bert_sentiment_analysis": """
        data/{imdb_dataset,preprocessor}.py models/{bert_classifier,trainer}.py
        evaluation/{metrics,visualization}.py inference/predictor.py config.yaml""",
    "gpt_text_generation": """
        text_generator.py prompt_engineering.py creative_writing_assistant.py code_generator.py
        evaluation/{perplexity_calculator,diversity_metrics,human_evaluation}.py""",
    "qa_system": """
        document_processor/{pdf_reader,text_splitter,vector_store}.py retrieval/{dense_retrieval,sparse_retrieval}.py
        generation/{answer_generator,citation_handler}.py evaluation/{retrieval_metrics,answer_quality}.py
        app/{streamlit_ui,fastapi_api}.py""",
    "model_optimization": """
        quantization/{dynamic_quantization,static_quantization,quantization_aware_training}.py
        pruning/{magnitude_pruning,structured_pruning}.py distillation/{teacher_student,distilbert_training}.py
        deployment/{fastapi_server,onnx_conversion,docker_deployment}.py
        monitoring/{performance_metrics,drift_detection}.py""",
    "multimodal_llm": """
        image_captioning/{blip_model,caption_evaluation}.py visual_question_answering/{data_loader,vqa_system}.py
        document_understanding/{layout_analysis,document_qa}.py
        clip_applications/{zero_shot_classification,image_search}.py""",
}
SHORT_NAMES = dict(
    zip(TREES, ("transformer", "sentiment", "generation", "qa", "optimization", "multimodal"), strict=True)
)
NUMBERS = {name: number for number, name in enumerate(TREES, start=1)}
OPTIONAL = {"model_optimization": {"__main__.py"}}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
ROOMS = {"builtin", "app"}  # a project's embedded defaults, and its web demo
PROJECTS = [name for name in TREES if (ROOT / name).is_dir()]
PACKAGES = ["shared", *PROJECTS]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SCRIPTS = [path for folder in ("benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def expand(tree: str) -> set[str]:
    """Write out the braces of a tree."""
    files = set()
    for word in tree.split():
        before, brace, rest = word.partition("{")
        names, _, after = rest.partition("}")
        files |= {f"{before}{name}{after}" for name in names.split(",")} if brace else {word}
    return files


def files_in(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts and path.name != ".DS_Store"}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_holds_exactly_its_tree(project: str) -> None:
    expected = expand(TREES[project]) | {"README.md"}
    code_folders = {Path(name).parent for name in expected | files_in(ROOT / project) if name.endswith(".py")}
    expected |= {(folder / "__init__.py").as_posix() for folder in code_folders}
    there = files_in(ROOT / project)
    assert expected - there == set(), "missing"
    extra = {name for name in there - expected if Path(name).parts[0] not in ROOMS}
    assert extra - OPTIONAL.get(project, set()) == set(), "not in the tree"


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_has_its_benchmark_notebook_and_tests(project: str) -> None:
    assert (ROOT / "benchmarks" / f"{SHORT_NAMES[project]}.py").is_file()
    assert list((ROOT / "notebooks").glob("*.ipynb")), "no notebooks"
    assert (ROOT / "notebooks" / f"{NUMBERS[project]:02}_{project}.ipynb").is_file()
    assert list((ROOT / "tests" / project).rglob("test_*.py"))


def test_test_folders_are_no_packages() -> None:
    # A tests/qa_system/__init__.py would shadow the real package.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {"shared", package}
    tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    assert "" not in tops, "imports are absolute"
    assert tops & ({"shared", *TREES} - allowed) == set()


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_edits_and_nothing_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in imported(tree)} & UNPICKLERS == set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            # The sandbox of project 3 moves its interpreter to another file system, and the library's path with it
            sandbox = path.relative_to(ROOT).as_posix() == "gpt_text_generation/code_generator.py"
            assert ast.unparse(node) != "sys.path" or sandbox, f"line {node.lineno}"
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert options.get("weights_only") == "True", f"line {node.lineno}: torch.load that may unpickle"
            assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"
