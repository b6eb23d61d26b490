"""Laws of the documentation: pages are found, links lead somewhere, and what is named exists: verbs, options, keys."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import geood
from geood.cli.app import app
from geood.config import Config
from geood.datasets.synthetic.world import make_world

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MEASURED = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md")]
TEXTS = {str(path.relative_to(ROOT)): path for path in [*BESIDE, *MEASURED, *PAGES]}
SECTIONS = Config.model_fields
MODELS = {
    name: {*field.annotation.model_fields}
    for name, field in SECTIONS.items()
    if hasattr(field.annotation, "model_fields")
}
LARGEST_PICTURE = 200_000  # bytes


def load_made_pages():
    """The pages that are made at the build of the site: `docs/made_pages.py`."""
    spec = importlib.util.spec_from_file_location("made_pages", DOCS / "made_pages.py")
    room = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(room)
    return room


made_pages = load_made_pages()


@cache
def text_of(path):
    return made_pages.filled(path.read_text(encoding="utf-8"))


def blocks_of(text, kinds=""):
    """The code blocks of a Markdown text, of some languages."""
    return [code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if kind in kinds.split(",")]


def prose_of(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def spans_of(text):
    """The words set as code within sentences."""
    return re.findall(r"`([^`\n]+)`", prose_of(text))


def commands(text):
    """Every `geood ...` line of the code blocks of a Markdown text, without its comment."""
    for block in blocks_of(text, ",bash,console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("geood "):
                yield line.strip().split(" #")[0].strip()


def anchors_of(path):
    """The anchors of a page's headings, as code hosts and the site make them."""
    seen: dict[str, int] = {}
    for title in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", text_of(path), flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        yield slug if not count else f"{slug}-{count}"


def test_every_page_is_in_the_navigation_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ +- [^:\n]+(?:\?)?: ([\w/-]+\.md)$", text[text.index("\nnav:") :], re.M)
    assert sorted(named) == sorted({*made_pages.BESIDE, *(str(path.relative_to(DOCS)) for path in PAGES)})
    assert all((ROOT / place).is_file() for place in made_pages.BESIDE.values())


def test_every_page_of_measurements_begins_with_its_answer_and_is_in_their_index_once():
    index = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^\]]+\]\(results/([\w-]+\.md)\) \| .+ \| ", index, re.M)
    assert sorted(rows) == [path.name for path in MEASURED]
    assert [path.name for path in MEASURED if not re.match(r"# .+\?\n\n\*\*", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", [*TEXTS, "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(text_of(path))):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), f"{name}: {target}"
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if there.parent == DOCS and there.name in made_pages.BESIDE:
            there = ROOT / made_pages.BESIDE[there.name]
        assert there.is_file(), f"{name}: {target} is no file"
        assert not anchor or anchor in anchors_of(there), f"{name}: {target}: no such heading"


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_what_the_program_takes(name):
    """Verb, options, kinds of values: parsed as the program does, without running it."""
    for line in commands(text_of(TEXTS[name])):
        words, command = shlex.split(line), get_command(app)
        context = command.make_context("geood", words[1:])
        while hasattr(command, "commands"):
            rest = [*getattr(context, "_protected_args", ()), *context.args]
            verb, command, rest = command.resolve_command(context, rest)
            context = command.make_context(verb, rest, parent=context)
        for setting in (after for option, after in pairwise(words) if option == "--set"):
            check_key(setting.partition("=")[0], f"{name}: {line}")


def check_key(key, where):
    section, _, inner = key.partition(".")
    assert inner.partition(".")[0] in MODELS.get(section, ()), f"{where}: the config has no key {key}"


@pytest.mark.parametrize("name", TEXTS)
def test_keys_exist(name):
    """Those set as code (`train.seed`, `data.label_ids: {255: 1}`), and those of blocks of YAML."""
    text = text_of(TEXTS[name])
    for span in spans_of(text):
        found = re.match(rf"({'|'.join(MODELS)})\.([a-z_]+)(?=$|[:= ,.])", span)
        if found and not span.endswith((".py", ".yaml", ".tif", ".safetensors", "()")):
            check_key(found[0], name)
    for block in blocks_of(text, "yaml"):
        for section, keys in yaml.safe_load(block).items():
            part = any(section in inner for inner in MODELS.values())  # a few lines out of a section
            assert part or section in SECTIONS or section == "base", f"{name}: the config has no section {section}"
            for key in keys if isinstance(keys, dict) and section in MODELS else ():
                check_key(f"{section}.{key}", name)


@pytest.mark.parametrize("name", TEXTS)
def test_options_and_verbs_named_in_sentences_exist(name):
    verbs = dict(made_pages.verbs())
    known = {opt for command in verbs.values() for param in command.params for opt in param.opts}
    known |= {"--debug", "--version", "--help"}
    words = {"geood", *(word for verb in verbs for word in verb.split())}
    for span in spans_of(text_of(TEXTS[name])):
        ours = span.startswith("--") or span.split()[0] in words  # not those of other programs
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span) if ours else ():
            assert option in known, f"{name}: no verb has {option}"
        if found := re.match(r"geood ([a-z]+)(?: ([a-z]+))?", span):
            assert found[1] in verbs or f"{found[1]} {found[2]}" in verbs or found[1] == "data", f"{name}: {span}"


@pytest.mark.parametrize("name", TEXTS)
def test_targets_and_scripts_exist(name):
    text = text_of(TEXTS[name])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    lines = [line for block in blocks_of(text) for line in block.splitlines()] + spans_of(text)
    for line in lines:
        if found := re.match(r"(?:\w+=\S+ )*make ([a-z][a-z-]*)", line):
            assert found[1] in targets, f"{name}: {line}"
        for script in re.findall(r"(?<![\w/])(?:benchmarks|examples|docs|configs)/[\w/.-]+\.(?:py|yaml|json|md)", line):
            assert "NAME" in script or (ROOT / script).is_file(), f"{name}: {script}"


def test_pictures_are_small_and_used():
    shown = {
        (path.parent / target).resolve()
        for path in TEXTS.values()
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of(path))
    }
    kinds = (".png", ".jpg", ".webp", ".svg")
    pictures = {path for path in DOCS.rglob("*") if path.suffix in kinds and path.stem != "favicon"}
    assert pictures == shown
    assert all(path.stat().st_size < LARGEST_PICTURE for path in pictures)


def test_the_reference_names_every_verb_key_and_public_name():
    verbs, keys = made_pages.command_line(), made_pages.configuration()
    for name, command in made_pages.verbs():
        assert f"## geood {name}\n" in verbs and command.help.split("\n")[0] in verbs
        for param in command.params:
            assert param.param_type_name == "argument" or f"`{max(param.opts, key=len)}" in verbs
    for section, inner in MODELS.items():
        part = keys[keys.index(f"## {section}\n") :]
        for key in inner:
            row = re.search(rf"^\| `{key}` \| (.*) \| (.*) \| (.+) \|$", part, re.M)
            assert row and row[1] and row[2] and len(row[3]) > 10, f"{section}.{key}"
    public = made_pages.public_names()
    assert all(f"::: geood.{name}\n" in f"{public}\n" for name in geood.__all__ if name != "__version__")


def test_links_are_turned_between_the_pages_and_what_lies_above():
    assert made_pages.linked("[a](../benchmarks/README.md#x)", "trust.md") == "[a](benchmarks.md#x)"
    assert made_pages.linked("[a](../benchmarks/results/seams.md#x)", "trust.md") == "[a](benchmarks/seams.md#x)"
    assert made_pages.linked("[a](../docs/trust.md)", "benchmarks.md") == "[a](trust.md)"
    deep = made_pages.linked("[a](../../docs/trust.md) [b](gates.md)", "benchmarks/seams.md")
    assert deep == "[a](../trust.md) [b](gates.md)"
    assert made_pages.linked("[a](docs/trust.md#b) [c](x.png)", "contributing.md") == "[a](trust.md#b) [c](x.png)"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_server(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    built = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", built]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in built.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text("utf-8"))
        assert not loaded, f"{page.name}: {loaded}"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    (tmp_path / "demo").mkdir()
    make_world(tmp_path / "demo" / "world", seed=1, size_px=256, scenes=2)
    shutil.copy(ROOT / "examples" / "first_map.py", tmp_path)
    done = subprocess.run([sys.executable, "first_map.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "budget" in done.stdout and "polygons above" in done.stdout
    assert (tmp_path / "first_map" / "anomalies.gpkg").is_file()
